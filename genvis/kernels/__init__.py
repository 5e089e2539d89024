"""Accelerated operations, one file each: the definition, the fast paths, one dispatcher."""

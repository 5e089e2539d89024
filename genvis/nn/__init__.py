"""Layers with no particular model in mind."""

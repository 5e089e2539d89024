"""The border to foreign code: the only place that knows a foreign class or layout by name."""

from genvis.integrations.official import from_official, load_official_file

__all__ = ["from_official", "load_official_file"]

"""Layers with no particular model in mind."""

from genvis.config import Table

SKIP_SCALES = Table(
    "skip scale",
    {
        "none": "genvis.nn.skips:Unscaled",
        "inv_sqrt2": "genvis.nn.skips:InverseSqrt2",
        "constant": "genvis.nn.skips:Constant",
        "per_token": "genvis.nn.skips:PerToken",
        "per_channel": "genvis.nn.skips:PerChannel",
    },
)

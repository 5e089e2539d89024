"""Networks from noisy maps to maps, one file each.

A new backbone is one file with a `Config` and a module, and one line here; or no line at all, when
a config names it as `my_lab.nets:MyConfig`.
"""

from genvis.config import Table

BACKBONES = Table(
    "backbone",
    {
        "dit": "genvis.backbones.dit:DiTConfig",
        **{
            f"dit_{size}_{patch}": f"genvis.backbones.dit:DIT_{size.upper()}_{patch}"
            for size in ("s", "b", "l", "xl")
            for patch in (2, 4, 8)
        },
    },
)

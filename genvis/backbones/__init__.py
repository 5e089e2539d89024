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
        "pixart": "genvis.backbones.pixart:PixArtConfig",
        **{
            f"pixart_{size}": f"genvis.backbones.pixart:PIXART_{size.upper()}"
            for size in ("xl_2", "xl_2_512", "xl_2_1024")
        },
        "uvit": "genvis.backbones.uvit:UViTConfig",
        **{
            f"uvit_{size}": f"genvis.backbones.uvit:UVIT_{size.upper()}"
            for size in ("s_2", "s_2_text", "s_2_deep", "m_4", "l_2", "l_4", "h_2", "h_4")
        },
        "dimr": "genvis.backbones.dimr:DiMRConfig",
        "dimr_xl_2r": "genvis.backbones.dimr:DIMR_XL_2R",
        "dimr_g_2r": "genvis.backbones.dimr:DIMR_G_2R",
        "unet": "genvis.backbones.unet:UNetConfig",
        "unet_adm_256": "genvis.backbones.unet:UNET_ADM_256",
        "unet_ldm": "genvis.backbones.unet_ldm:LDMUNetConfig",
        **{
            f"unet_{name}": f"genvis.backbones.unet_ldm:UNET_{name.upper()}"
            for name in ("sd_1", "sd_2", "sdxl", "td4_4")
        },
        "lego": "genvis.backbones.lego:LEGOConfig",
        **{
            f"lego_{name}": f"genvis.backbones.lego:LEGO_{name.upper()}"
            for name in (
                *("s_pg_64", "s_pr_64", "s_u_64"),
                *("l_pg_32", "l_pr_32", "l_u_32", "l_pg_64", "l_pr_64", "l_u_64"),
                *("xl_pg_32", "xl_pr_32", "xl_u_32", "xl_pg_64", "xl_pr_64", "xl_u_64"),
            )
        },
        "dim": "genvis.backbones.dim:DiMConfig",
        **{
            f"dim_{name}": f"genvis.backbones.dim:DIM_{name.upper()}"
            for name in ("digits", "s_2", "b_2", "l_2", "xl_2")
        },
        "zigma": "genvis.backbones.zigma:ZigMaConfig",
        **{
            f"zigma_{name}": f"genvis.backbones.zigma:ZIGMA_{name.upper()}"
            for name in ("s_1", "s_2", "b_1", "b_2", "m_2", "l_1", "l_2", "h_1", "h_2")
        },
        "diffusers": "genvis.integrations.diffusers_backbone:DiffusersConfig",
    },
)

SCALE_BACKBONES = Table(
    "next-scale backbone",
    {
        "var": "genvis.backbones.var:VARConfig",
        **{
            f"var_{size}": f"genvis.backbones.var:VAR_{size.upper()}"
            for size in ("d12", "d16", "d20", "d24", "d30", "d36_s")
        },
        "mvar": "genvis.backbones.mvar:MVARConfig",
        **{
            f"mvar_{size}": f"genvis.backbones.mvar:MVAR_{size.upper()}"
            for size in ("d12", "d16", "d20", "d24", "d30", "d32")
        },
    },
)

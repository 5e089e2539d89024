"""Quantization: what a number format means, how it is stored, and which layers get which.

A format is one frozen dataclass and one line of `FORMATS` (`genvis.quant.format` says what it must
define). Activation ranges are found as they pass or calibrated by an observer. Plans
(`genvis.quant.plan`) assign all of it to layers by name.
"""

from genvis.config import Table

FORMATS = Table(
    "format",
    {
        "int": "genvis.quant.integer:Integer",
        "float": "genvis.quant.floating:Float",
        "mx": "genvis.quant.mx:MX",
        "nvfp4": "genvis.quant.nvfp4:NVFP4",
        "log_sqrt2": "genvis.quant.logarithmic:LogSqrt2",
    },
)

ELEMENTS = Table(
    "small floating-point number",
    {
        "minifloat": "genvis.quant.minifloat:Minifloat",
        "e4m3": "genvis.quant.minifloat:E4M3",
        "e5m2": "genvis.quant.minifloat:E5M2",
        "e3m2": "genvis.quant.minifloat:E3M2",
        "e2m3": "genvis.quant.minifloat:E2M3",
        "e2m1": "genvis.quant.minifloat:E2M1",
        "e3m0": "genvis.quant.minifloat:E3M0",
    },
)

ACTIVATIONS = Table(
    "activation range",
    {
        "dynamic": "genvis.quant.activations:Dynamic",
        "static": "genvis.quant.activations:Static",
    },
)

OBSERVERS = Table(
    "observer",
    {
        "min_max": "genvis.quant.observers:MinMax",
        "ema": "genvis.quant.observers:EMA",
        "percentile": "genvis.quant.observers:Percentile",
        "mse": "genvis.quant.observers:MSE",
        "hessian": "genvis.quant.observers:Hessian",
    },
)

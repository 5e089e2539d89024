"""Quantization: what a number format means, how it is stored, and which layers get which.

A format is one frozen dataclass and one line of `FORMATS` (`genvis.quant.format` says what it must
define). Activation ranges are found as they pass or calibrated by an observer. Transformations
(`genvis.quant.transform`) prepare a layer for it, and a rounding makes codes of its weight. Plans
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

BACKENDS = Table(
    "back-end",
    {
        "fake": "genvis.quant.backends:Fake",
        "int8": "genvis.quant.backends:Int8",
        "int4": "genvis.quant.backends:Int4",
        "torchao": "genvis.integrations.torchao_backend:TorchAO",
    },
)

TRANSFORMS = Table(
    "transformation",
    {
        "smooth": "genvis.quant.transforms.scaling:Smooth",
        "awq": "genvis.quant.transforms.scaling:AWQ",
        "repq": "genvis.quant.transforms.repq:RepQ",
        "rotate": "genvis.quant.transforms.rotate:Rotate",
        "ostquant": "genvis.quant.transforms.ostquant:OstQuant",
        "outliers": "genvis.quant.transforms.outliers:Outliers",
        "low_rank": "genvis.quant.transforms.low_rank:LowRank",
        "split": "genvis.quant.transforms.split:Split",
        "keep_tokens": "genvis.quant.transforms.keep_tokens:KeepTokens",
    },
)

ROUNDINGS = Table(
    "rounding",
    {
        "nearest": "genvis.quant.rounding:Nearest",
        "gptq": "genvis.quant.gptq:GPTQ",
        "adaquant": "genvis.quant.adaquant:AdaQuant",
    },
)

"""What training minimises."""

from genvis.config import Table

OBJECTIVES = Table(
    "objective",
    {
        "denoising": "genvis.objectives.denoising:Denoising",
        "classification": "genvis.objectives.classification:Classification",
    },
)

TIMES = Table(
    "time sampler",
    {
        "uniform": "genvis.objectives.times:Uniform",
        "logit_normal": "genvis.objectives.times:LogitNormal",
    },
)

"""What training minimises."""

from genvis.config import Table

OBJECTIVES = Table(
    "objective",
    {
        "denoising": "genvis.objectives.denoising:Denoising",
        "staged": "genvis.objectives.stages:StagedDenoising",
        "classification": "genvis.objectives.classification:Classification",
        "reconstruction": "genvis.objectives.reconstruction:Reconstruct",
    },
)

TIMES = Table(
    "time sampler",
    {
        "uniform": "genvis.objectives.times:Uniform",
        "logit_normal": "genvis.objectives.times:LogitNormal",
        "log_normal": "genvis.objectives.times:LogNormal",
        "shifted": "genvis.objectives.times:Shifted",
    },
)

WEIGHTS = Table(
    "loss weight",
    {
        "constant": "genvis.objectives.weights:Constant",
        "in_terms_of": "genvis.objectives.weights:InTermsOf",
        "min_snr": "genvis.objectives.weights:MinSNR",
        "likelihood": "genvis.objectives.weights:Likelihood",
    },
)

PERCEPTUAL = Table(
    "perceptual distance",
    {
        "lpips": "genvis.objectives.perceptual:LPIPSDistance",
        "classifier": "genvis.objectives.perceptual:ClassifierDistance",
        "gradients": "genvis.objectives.perceptual:Gradients",
    },
)

GAMES = Table(
    "adversarial game",
    {
        "hinge": "genvis.objectives.adversary:Hinge",
        "vanilla": "genvis.objectives.adversary:Vanilla",
    },
)

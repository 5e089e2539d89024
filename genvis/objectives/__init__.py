"""What training minimises."""

from genvis.config import Table

OBJECTIVES = Table(
    "objective",
    {
        "denoising": "genvis.objectives.denoising:Denoising",
        "staged": "genvis.objectives.stages:StagedDenoising",
        "classification": "genvis.objectives.classification:Classification",
        "reconstruction": "genvis.objectives.reconstruction:Reconstruct",
        "next_scale": "genvis.objectives.next_scale:NextScale",
        "distil_scales": "genvis.objectives.distil_scales:DistilScales",
        "distil_denoiser": "genvis.objectives.distil_denoiser:DistilDenoiser",
        "damped": "genvis.compression.damping:Damped",
        "contrastive": "genvis.objectives.contrastive:Contrastive",
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

DIVERGENCES = Table(
    "divergence",
    {
        "forward": "genvis.objectives.divergences:Forward",
        "reverse": "genvis.objectives.divergences:Reverse",
        "cakld": "genvis.objectives.divergences:CAKLD",
        "topkld": "genvis.objectives.divergences:TopKLD",
        "kl_top": "genvis.objectives.divergences:KLTop",
        "topk_bucket": "genvis.objectives.divergences:TopKBucket",
        "squared": "genvis.objectives.divergences:Squared",
    },
)

SCALE_WEIGHTS = Table(
    "choice of scales",
    {
        "all": "genvis.objectives.scale_weights:AllScales",
        "first": "genvis.objectives.scale_weights:FirstScales",
        "last": "genvis.objectives.scale_weights:LastScales",
        "progressive": "genvis.objectives.scale_weights:Progressive",
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

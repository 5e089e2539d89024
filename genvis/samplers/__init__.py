"""From weights and noise to images, step by step, with explicit state."""

from genvis.config import Table

SAMPLERS = Table(
    "sampler",
    {
        "diffusion": "genvis.samplers.generator:SamplerConfig",
        "next_scale": "genvis.samplers.next_scale:NextScaleConfig",
        "collaborative": "genvis.samplers.collaborative:CollaborativeConfig",
        "pipeline": "genvis.integrations.diffusers_search:Whole",
        "pipeline_stepwise": "genvis.integrations.diffusers_stepwise:Stepwise",
    },
    default="diffusion",
)

SOLVERS = Table(
    "solver",
    {
        "euler": "genvis.samplers.solvers:Euler",
        "heun": "genvis.samplers.solvers:Heun",
        "midpoint": "genvis.samplers.solvers:Midpoint",
        "dpm_solver_pp_2m": "genvis.samplers.solvers:DPMSolverPP2M",
        "ddim": "genvis.samplers.stochastic:DDIM",
        "ancestral": "genvis.samplers.stochastic:Ancestral",
        "euler_maruyama": "genvis.samplers.stochastic:EulerMaruyama",
        "stochastic_heun": "genvis.samplers.stochastic:StochasticHeun",
        "churned_heun": "genvis.samplers.stochastic:ChurnedHeun",
    },
)

DIFFUSIONS = Table(
    "diffusion coefficient",
    {
        "sigma": "genvis.samplers.diffusions:Sigma",
        "reverse": "genvis.samplers.diffusions:Reverse",
        "power": "genvis.samplers.diffusions:Power",
        "decreasing": "genvis.samplers.diffusions:Decreasing",
        "sine": "genvis.samplers.diffusions:Sine",
        "volatility": "genvis.samplers.diffusions:Volatility",
    },
)

GRIDS = Table(
    "time grid",
    {
        "uniform": "genvis.samplers.grids:Uniform",
        "quadratic": "genvis.samplers.grids:Quadratic",
        "shifted": "genvis.samplers.grids:Shifted",
        "circle": "genvis.samplers.grids:Circle",
        "karras": "genvis.samplers.grids:Karras",
        "respaced": "genvis.samplers.grids:Respaced",
    },
)

CHANGES = Table(
    "change of the network",
    {
        "quantize": "genvis.quant.plan:Plan",
        "quantize_aware": "genvis.quant.aware:QuantizeAware",
        "skip_bricks": "genvis.backbones.lego:SkipBricks",
    },
)

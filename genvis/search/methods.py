"""Published particle methods, each a setting of the engine.

A config names one and changes what it likes: `{name: fk_steering, n: 8, lam: 2}`.
"""

from genvis.search.engine import ParticleSearch
from genvis.search.potentials import Difference, Largest, Tempered, Value
from genvis.search.proposals import Gradient
from genvis.search.selections import BestChild, Resample, Top

# The bootstrap filter on the tilted model: Wu et al. 2023, "Practical and Asymptotically Exact
# Conditional Sampling in Diffusion Models", without its twisted proposal.
SMC = ParticleSearch(n=16, potential=Difference(), select=Resample())

# Singhal et al. 2025, "A General Framework for Inference-time Scaling and Steering of Diffusion
# Models", with the numbers of its released code: 100 steps of DDIM with eta 1.
FK_STEERING = ParticleSearch(
    n=4,
    lam=10.0,
    every=20,
    potential=Largest(),
    select=Resample(scheme="multinomial", threshold=1.0),
)

# Wu et al. 2023, TDS: the bootstrap filter whose steps follow the gradient of the score.
TDS = ParticleSearch(n=8, potential=Difference(), proposal=Gradient(), select=Resample())

# Kim et al. 2025, "Test-time Alignment of Diffusion Models without Reward Over-optimization": TDS
# with a tilt that grows with the steps (gamma is for 100 of them); lam is 1 / its kl_coeff.
DAS = ParticleSearch(
    n=4,
    potential=Tempered(gamma=0.008),
    proposal=Gradient(),
    select=Resample(scheme="ssp"),
    output="best weight",
)

# Li et al. 2024, "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft
# Value-Based Decoding": n chains, each of which goes on as the best of its 20 children.
SVDD = ParticleSearch(n=1, children=20, potential=Value(), select=BestChild())

# Singh et al. 2025, "CoDe: Blockwise Control for Denoising Diffusion Models": SVDD over blocks.
BLOCKWISE = ParticleSearch(n=2, children=25, every=2, potential=Value(), select=BestChild())

# The best n of all children of all of them.
BEAM = ParticleSearch(n=4, children=4, potential=Value(), select=Top())

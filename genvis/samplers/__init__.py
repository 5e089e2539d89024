"""From weights and noise to images, step by step, with explicit state."""

from genvis.config import Table

SOLVERS = Table(
    "solver", {"euler": "genvis.samplers.solvers:Euler", "heun": "genvis.samplers.solvers:Heun"}
)

CHANGES = Table("change of the network", {"quantize": "genvis.quant.plan:Plan"})

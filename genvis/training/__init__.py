"""One training loop for everything that is trained."""

from genvis.config import Table

CALLBACKS = Table(
    "callback",
    {
        "validation": "genvis.training.callbacks:Validation",
        "activations": "genvis.training.callbacks:Activations",
        "samples": "genvis.training.callbacks:SampleGrid",
    },
)

"""One training loop for everything that is trained."""

from genvis.config import Table

MODELS = Table(
    "model",
    {
        "generator": "genvis.samplers.generator:GeneratorConfig",
        "classifier": "genvis.features.classifier:ClassifierConfig",
    },
)

CALLBACKS = Table(
    "callback",
    {
        "validation": "genvis.training.callbacks:Validation",
        "samples": "genvis.training.callbacks:SampleGrid",
    },
)

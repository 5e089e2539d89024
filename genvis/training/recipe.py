"""A complete training run as one config."""

from dataclasses import field
from typing import Annotated, Literal

from genvis.config import config
from genvis.data import DATASETS
from genvis.models import MODELS
from genvis.objectives import OBJECTIVES
from genvis.training import CALLBACKS
from genvis.training.callbacks import Callback
from genvis.training.optim import Optim
from genvis.types import DatasetConfig, ModelConfig, Objective


@config
class Recipe:
    model: Annotated[ModelConfig, MODELS]
    data: Annotated[DatasetConfig, DATASETS]
    objective: Annotated[Objective, OBJECTIVES]
    optim: Optim = Optim()
    # optimizers of the objective's other players, by name
    players: dict[str, Optim] = field(default_factory=dict)
    init: str | None = (
        None  # a model or run folder, or a hub id, whose weights training starts from
    )
    steps: int
    batch: int = 256  # images per optimizer step, over all processes
    accumulate: int = 1  # micro-batches per optimizer step
    ema: float = 0.9999  # decay per step; grows towards it as min(ema, (1 + n) / (10 + n))
    # of the forward pass; weights, loss and EMA stay float32
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    workers: int = 0  # processes that load data
    log_every: int = 50
    checkpoint_every: int = 1000
    keep: int = 2  # checkpoints kept
    tracker: Literal["tensorboard"] | None = None
    callbacks: tuple[Annotated[Callback, CALLBACKS], ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in 0..2^32 - 1, got {self.seed}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch must be divisible by accumulate, got {self.batch} and {self.accumulate}"
            )

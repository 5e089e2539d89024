"""The optimizer, its parameter groups and its schedule, which is a function of the step alone.

Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization" (AdamW).
"""

import math
from typing import Literal

import torch
from torch import nn

from genvis.config import config


@config
class Optim:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0  # on the weights of layers; not on norms, tables, positions, A_log
    clip: float | None = 1.0  # largest gradient norm
    warmup: int = 0  # steps from 0 to lr
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up, down to 0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        if self.weight_decay < 0 or self.warmup < 0:
            raise ValueError("weight_decay and warmup must be at least 0")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip must be positive or null, got {self.clip}")

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        tables = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
        trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
        matrices = {n for n, p in trained.items() if p.ndim > 1 and n.rsplit(".")[-1] == "weight"}
        decayed = [p for n, p in trained.items() if n in matrices and id(p) not in tables]
        plain = [p for n, p in trained.items() if n not in matrices or id(p) in tables]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        fused = all(p.is_cuda for p in trained.values())
        return torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=self.lr, betas=self.betas, fused=fused
        )

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of step 0, ..., steps - 1."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        left = 1 - (step - self.warmup) / max(1, steps - self.warmup)
        if self.schedule == "linear":
            return self.lr * left
        if self.schedule == "cosine":
            return self.lr * (1 - math.cos(math.pi * left)) / 2
        return self.lr

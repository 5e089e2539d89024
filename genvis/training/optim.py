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
    last_weight_decay: float | None = None  # where a cosine over all steps takes it; null: stays
    decayed_tables: tuple[str, ...] = ()  # embeddings that are decayed too, by module name
    clip: float | None = 1.0  # largest gradient norm
    warmup: int = 0  # steps from 0 to lr
    # after the warm-up: at lr for a share `hold` of the steps left, then down to `last` times lr
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    hold: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        if self.weight_decay < 0 or self.warmup < 0:
            raise ValueError("weight_decay and warmup must be at least 0")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"clip must be positive or null, got {self.clip}")
        if not 0 <= self.hold < 1 or not 0 <= self.last <= 1:
            raise ValueError(
                f"hold must be in [0, 1) and last in [0, 1], got {self.hold}, {self.last}"
            )
        if (
            self.last_weight_decay is not None
            and min(self.weight_decay, self.last_weight_decay) <= 0
        ):
            raise ValueError(
                "last_weight_decay and the weight_decay it starts from must be positive"
            )

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        """ValueError for a decayed table that the network does not have."""
        named = {n: m.weight for n, m in net.named_modules() if isinstance(m, nn.Embedding)}
        for name in self.decayed_tables:
            if name not in named:
                has = ", ".join(named) or "none"
                raise ValueError(f"decayed_tables: no embedding is named {name!r}; it has {has}")
        tables = {id(weight) for n, weight in named.items() if n not in self.decayed_tables}
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

    def set(self, optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Give the optimizer what step 0, ..., steps - 1 has."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr_at(step, steps)
            if group["weight_decay"]:
                group["weight_decay"] = self.weight_decay_at(step, steps)

    def lr_at(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        left = 1 - (step - self.warmup) / max(1, steps - self.warmup)
        left = min(1.0, left / (1 - self.hold))
        part = left if self.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
        return self.lr * (self.last + (1 - self.last) * part)

    def weight_decay_at(self, step: int, steps: int) -> float:
        if self.last_weight_decay is None:
            return self.weight_decay
        part = (1 + math.cos(math.pi * step / max(1, steps - 1))) / 2
        return self.last_weight_decay + (self.weight_decay - self.last_weight_decay) * part

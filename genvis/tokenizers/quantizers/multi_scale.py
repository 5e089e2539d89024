"""Multi-scale residual quantization: an image's map as a sum of coarse to fine token maps.

Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale
Prediction", algorithms 1 and 2. How codes of coarse scales, which see few vectors a step, are kept
alive is ours: the codebook starts at residuals of every scale in equal shares, and dead codes
become residuals drawn in the same shares.
Letters: B rows, C channels, H side of the map, K scales of side p_k, V codes, s the shares r of the
convolutions phi.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.config import config
from genvis.random import Keys
from genvis.tokenizers.quantizers.quantized import entropy, histogram, row_mean, straight_through
from genvis.tokenizers.quantizers.vector import Codebook, chosen, nearest


@config
class MultiScaleConfig:
    codes: int = 4096
    width: int = 32
    scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    beta: float = 0.25
    cosine: bool = False  # codes are looked up by angle
    phi: int = 4  # convolutions, shared by neighbouring scales; 0: one for each scale
    strength: float = 0.5  # r: a scale adds (1 - r) u + r conv(u)
    decay: float = 0.99  # of the moving count of uses
    revive: float = 0.03  # codes used less than this share of the mean are replaced; 0: never

    def __post_init__(self) -> None:
        if min(self.codes, self.width) < 1 or self.phi < 0:
            raise ValueError("codes and width must be at least 1, phi at least 0")
        if not self.scales or self.scales[0] < 1 or sorted(set(self.scales)) != [*self.scales]:
            raise ValueError(f"scales must be positive and grow, got {self.scales}")
        if not 0 <= self.strength <= 1 or not 0 <= self.decay < 1 or self.revive < 0:
            raise ValueError("strength must be in [0, 1], decay in [0, 1), revive at least 0")

    def build(self) -> "MultiScale":
        return MultiScale(self)


@dataclass(frozen=True)
class ScaleSum:
    """f_hat (B, C, H, H) with the gradient of f; tokens: (B, n_k) a scale; loss (B,); sums: f_hat
    after every scale.
    """

    f_hat: Tensor
    tokens: tuple[Tensor, ...]
    loss: Tensor
    sums: tuple[Tensor, ...]


class MultiScale(nn.Module):
    """One codebook for all scales. `uses` (K, V) are moving counts."""

    uses: Tensor
    started: Tensor

    def __init__(self, config: MultiScaleConfig) -> None:
        super().__init__()
        self.config = config
        scales, width = len(config.scales), config.width
        self.embedding = Codebook(config.codes, width)
        count = (config.phi or scales) if config.strength else 0
        self.phi = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(count))
        self.phi_of = phi_of_scale(scales, count) if count else ()
        self.register_buffer("uses", torch.ones(scales, config.codes))
        self.register_buffer("started", torch.tensor(False))
        bound = width**-0.5 / 36
        nn.init.uniform_(self.embedding.weight, -bound, bound)

    def forward(self, f: Tensor) -> ScaleSum:
        """f (B, C, H, H). loss = mean_k beta |f_hat_k - f|^2 with the gradient of f, plus the same
        with that of f_hat_k: codes and phi learn from nothing else.
        """
        f = f.float()
        tokens, sums, losses = [], [], []
        f_hat = torch.zeros_like(f)
        for k in range(len(self.config.scales)):
            tokens.append(self.nearest(self.shrink(f.detach() - f_hat.detach(), k)))
            f_hat = f_hat + self.grow(tokens[-1], k, f.shape[-1])
            commitment = row_mean((f_hat.detach() - f).square())
            losses.append(self.config.beta * commitment + row_mean((f_hat - f.detach()).square()))
            sums.append(f_hat)
        loss = torch.stack(losses).mean(0)
        return ScaleSum(straight_through(f, f_hat), tuple(tokens), loss, tuple(sums))

    def shrink(self, x: Tensor, k: int) -> Tensor:
        """A map (B, C, H, H) at scale k: (B, n_k, C), each the mean of an area."""
        p = self.config.scales[k]
        x = x if x.shape[-1] == p else F.adaptive_avg_pool2d(x, p)
        return rearrange(x, "b c h w -> b (h w) c")

    def nearest(self, z: Tensor) -> Tensor:
        """The codes of z (B, n, C): (B, n)."""
        if self.config.cosine:
            return (F.normalize(z, dim=-1) @ F.normalize(self.embedding.weight, dim=-1).T).argmax(2)
        return nearest(z, self.embedding.weight)

    def grow(self, tokens: Tensor, k: int, side: int) -> Tensor:
        """What scale k adds to the map, (B, C, side, side): its tokens (B, n_k), or mixtures of all
        codes in shares (B, n_k, V).
        """
        p, r = self.config.scales[k], self.config.strength
        mixed = tokens.is_floating_point()
        u = tokens @ self.embedding.weight if mixed else self.embedding(tokens)
        u = rearrange(u, "b (h w) c -> b c h w", h=p)
        u = u if p == side else F.interpolate(u, size=(side, side), mode="bicubic")
        return (1 - r) * u + r * self.phi[self.phi_of[k]](u) if self.phi else u

    @torch.no_grad()
    def learn(self, f: Tensor, keys: Keys) -> None:
        """After a step: start at, count the uses of, and revive codes by its maps (B, C, H, H).

        keys: one row.
        """
        every = torch.ones(self.config.codes, dtype=torch.bool, device=f.device)
        if not self.started:
            self.place(every, [z for z, _ in self.residuals(f, exact=True)], keys.fold("start"))
            self.started.fill_(True)
        found = [*self.residuals(f)]
        counts = torch.stack([histogram(tokens, len(every)) for _, tokens in found])
        self.uses.lerp_(counts.to(self.uses), 1 - self.config.decay)
        parts = [z for z, _ in found]
        self.place(self.uses.sum(0) < self.least(parts), parts, keys.fold("revive"))

    def least(self, residuals: list[Tensor]) -> float:
        """The moving count of uses, over all scales, below which a code is dead."""
        vectors = sum(z.shape[0] * z.shape[1] for z in residuals)
        return self.config.revive * vectors / self.config.codes

    def residuals(self, f: Tensor, exact: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left of f (B, C, H, H) at every scale (B, n_k, C), and its tokens (B, n_k).

        exact: as if every residual were a code, for a codebook that has not started.
        """
        rest = f.float()
        for k, p in enumerate(self.config.scales):
            z = self.shrink(rest, k)
            tokens = self.nearest(z)
            yield z, tokens
            if exact:
                u = rearrange(z, "b (h w) c -> b c h w", h=p)
                rest = rest - F.interpolate(u, size=rest.shape[-2:], mode="bicubic")
            else:
                rest = rest - self.grow(tokens, k, rest.shape[-1])

    def place(self, codes: Tensor, residuals: list[Tensor], keys: Keys) -> None:
        """Codes (V,) bool become residuals, of every scale in equal shares and in random order, as
        if each had been used once, or twice as often as a dead one.
        """
        n = -(-len(codes) // len(residuals))
        drawn = [chosen(z.flatten(0, 1), n, keys.fold(k)) for k, z in enumerate(residuals)]
        mixed = torch.cat(drawn)[keys.uniform((n * len(drawn),), codes.device)[0].argsort()]
        self.embedding.weight[codes] = mixed[: len(codes)][codes]
        self.uses[:, codes] = max(1.0, 2 * self.least(residuals)) / len(residuals)


def phi_of_scale(scales: int, count: int) -> tuple[int, ...]:
    """Which of `count` convolutions each scale uses: the nearest of evenly spread ticks.

    In float64 and in this order of operations: two of ten scales lie half-way between two of four.
    """
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(margin, 1 - margin, count)
    return tuple(int(np.abs(ticks - k / max(1, scales - 1)).argmin()) for k in range(scales))


def scale_statistics(
    tokens: tuple[Tensor, ...], scales: tuple[int, ...], codes: int
) -> dict[str, Tensor]:
    """Usage and perplexity overall and by scale, distinct codes by scale."""
    counts = [histogram(t.detach(), codes) for t in tokens]
    total = torch.stack(counts).sum(0)
    logs = {"usage": (total > 0).double().mean(), "perplexity": entropy(total).exp()}
    for p, count in zip(scales, counts, strict=True):
        logs[f"codes_{p}x{p}"] = (count > 0).sum().double()
        logs[f"perplexity_{p}x{p}"] = entropy(count).exp()
    return logs

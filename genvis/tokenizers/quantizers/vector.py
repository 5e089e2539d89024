"""Vector quantization: the nearest of K learned vectors.

VQ trains its codebook by a loss, EMAVQ by moving averages of the vectors assigned to each code.
Neither collapses, because codes start at, and dead ones return to, features of the last batch.
Sources: van den Oord et al. 2017, "Neural Discrete Representation Learning", eq. 3 and appendix
A.1; Yu et al. 2022, "Vector-quantized Image Modeling with Improved VQGAN", section 3.2 (vectors of
length one); Dhariwal et al. 2020, "Jukebox", section 3 (restarts).
Letters: B rows, N vectors, d width, K codes, e the codebook (K, d), n_k uses and m_k sum of code k.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.config import config
from genvis.random import Keys
from genvis.tokenizers.quantizers.quantized import (
    Quantized,
    histogram,
    rotated,
    row_mean,
    statistics,
    straight_through,
)

EPS = 1e-5  # pseudo-counts of a moving average


class Codebook(nn.Embedding):
    """Vectors that may jump, so an average of weights copies them."""

    averaged = False


@config
class VQConfig:
    codes: int = 256
    width: int = 8
    normalize: bool = True  # features and codes have length one
    beta: float = 0.25  # how strongly features keep to their codes
    rotation: bool = False  # gradients turn from code to feature, instead of passing straight
    decay: float = 0.99  # of the moving count of uses
    revive: float = 0.03  # codes used less than this share of the mean are replaced; 0: never

    def __post_init__(self) -> None:
        if min(self.codes, self.width) < 1:
            raise ValueError("codes and width must be at least 1")
        if not 0 <= self.decay < 1 or self.revive < 0 or self.beta < 0:
            raise ValueError("decay must be in [0, 1), revive and beta at least 0")

    @property
    def num_codes(self) -> int:
        return self.codes

    @property
    def inputs(self) -> int:
        return self.width

    def build(self) -> "VQ":
        return VQ(self)


class VQ(nn.Module):
    """loss = beta |f - sg(e)|^2 + |sg(f) - e|^2, each a mean over elements."""

    uses: Tensor
    started: Tensor

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Codebook(config.codes, config.width)
        self.register_buffer("uses", torch.ones(config.codes))
        self.register_buffer("started", torch.tensor(False))
        self.through = rotated if config.rotation else straight_through

    def forward(self, f: Tensor, keys: Keys | None = None) -> Quantized:
        """f (B, ..., d)."""
        f = self.space(f.float())
        indices = self.nearest(f)
        q = self.codes(indices)
        logs = statistics(indices, self.config.codes)
        return Quantized(self.through(f, q), indices, self.loss(f, q), logs)

    def loss(self, f: Tensor, q: Tensor) -> Tensor:
        commitment, attraction = (f - q.detach()).square(), (f.detach() - q).square()
        return self.config.beta * row_mean(commitment) + row_mean(attraction)

    def space(self, x: Tensor) -> Tensor:
        """Where features and codes are compared."""
        return F.normalize(x, dim=-1) if self.config.normalize else x

    def nearest(self, f: Tensor) -> Tensor:
        return nearest(f, self.space(self.embedding.weight))

    def codes(self, indices: Tensor) -> Tensor:
        return self.space(self.embedding(indices))

    @torch.no_grad()
    def learn(self, f: Tensor, keys: Keys) -> None:
        """After a step: start at, count the uses of, and revive codes by its features (B, ..., d).

        keys: one row.
        """
        f = self.space(f.float()).flatten(0, -2)
        if not self.started:
            self.place(torch.ones_like(self.uses, dtype=torch.bool), f, keys.fold("start"))
            self.started.fill_(True)
        self.count(f)
        self.place(self.uses < self.least(f), f, keys.fold("revive"))

    def least(self, f: Tensor) -> float:
        """The moving count of uses below which a code is dead, for steps of features (N, d)."""
        return self.config.revive * len(f) / self.config.codes

    def count(self, f: Tensor) -> None:
        """Learn from features (N, d) in the space of the codes."""
        found = histogram(self.nearest(f), self.config.codes).to(self.uses)
        self.uses.lerp_(found, 1 - self.config.decay)

    def place(self, codes: Tensor, f: Tensor, keys: Keys) -> None:
        """Codes (K,) bool become random features, as if each had been used once, or twice as often
        as a dead one: a large batch must not find it dead again at once.
        """
        self.embedding.weight[codes] = chosen(f, len(codes), keys)[codes]
        self.uses[codes] = max(1.0, 2 * self.least(f))


@config
class EMAVQConfig(VQConfig):
    """decay is that of the sums too; only the commitment is left in the loss."""

    def build(self) -> "EMAVQ":
        return EMAVQ(self)


class EMAVQ(VQ):
    """n_k and m_k decay towards the counts and sums of every step; e_k = m_k / n_k, with
    pseudo-counts.
    """

    sums: Tensor

    def __init__(self, config: EMAVQConfig) -> None:
        super().__init__(config)
        self.embedding.requires_grad_(False)
        self.register_buffer("sums", self.embedding.weight.detach().clone())

    def loss(self, f: Tensor, q: Tensor) -> Tensor:
        return self.config.beta * row_mean((f - q).square())

    def count(self, f: Tensor) -> None:
        kept, codes = self.config.decay, self.config.codes
        indices = self.nearest(f)
        self.uses.lerp_(histogram(indices, codes).to(self.uses), 1 - kept)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, indices, f), 1 - kept)
        total = self.uses.sum()
        smooth = (self.uses + EPS) / (total + codes * EPS) * total
        self.embedding.weight.copy_(self.space(self.sums / smooth[:, None]))

    def place(self, codes: Tensor, f: Tensor, keys: Keys) -> None:
        super().place(codes, f, keys)
        self.sums[codes] = self.embedding.weight[codes] * self.uses[codes, None]


def nearest(f: Tensor, codes: Tensor) -> Tensor:
    """argmin_k |f - e_k|^2 for f (..., d) and e (K, d): (...) int64."""
    flat = f.flatten(0, -2)
    distance = flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.T
    return distance.argmin(1).view(f.shape[:-1])


def chosen(f: Tensor, n: int, keys: Keys) -> Tensor:
    """n random rows of f (N, d); keys: one row."""
    return f[(keys.uniform((n,), f.device)[0] * len(f)).long()]

"""Quantization to signs: LFQ and BSQ, whose codebooks are the corners of a cube.

LFQ takes every dimension's sign; BSQ does so on the unit sphere. Both would use few codes but for
an entropy term: each vector should be sure of its code, all together should use every code.
Sources: Yu et al. 2024, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation",
section 3.1 (LFQ); Zhao et al. 2024, "Image and Video Tokenization with Binary Spherical
Quantization", sections 3.1 and 3.2.
Letters: B rows, N vectors, d bits, g groups of b bits, c corners of a group, p their probabilities.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.config import config
from genvis.random import Keys
from genvis.tokenizers.quantizers.quantized import (
    Quantized,
    row_mean,
    statistics,
    straight_through,
)

MOST_BITS = 14  # of a group: the entropy looks at all its corners
FLOOR = 1e-5  # under the logarithm


@config
class LFQConfig:
    bits: int = 8  # of an index
    codebooks: int = 1  # indices of a token
    spherical: bool = False  # vectors and codes have length one
    inv_temperature: float = 100.0
    entropy: float = 0.1
    diversity: float = 1.0  # how much the entropy of all counts against that of each
    commitment: float = 0.25

    def __post_init__(self) -> None:
        _check_bits("bits", self.bits)
        if self.codebooks < 1 or self.inv_temperature <= 0:
            raise ValueError("codebooks must be at least 1 and inv_temperature positive")

    @property
    def num_codes(self) -> int:
        return 2**self.bits

    @property
    def inputs(self) -> int:
        return self.bits * self.codebooks

    @property
    def width(self) -> int:
        return self.inputs

    @property
    def size(self) -> float:
        """The absolute value of a code's entries."""
        return self.bits**-0.5 if self.spherical else 1.0

    def build(self) -> "LFQ":
        return LFQ(self)


class LFQ(nn.Module):
    """loss = entropy (mean H(p) - diversity H(mean p)) + commitment |f - sg(q)|^2."""

    def __init__(self, config: LFQConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, f: Tensor, keys: Keys | None = None) -> Quantized:
        """f (B, ..., codebooks x bits); the index has one more axis if there are more codebooks."""
        config = self.config
        z = split(f.float(), config.bits)
        z = F.normalize(z, dim=-1) if config.spherical else z
        q = corner(z, config.size)
        p = probabilities(z, config.size, config.inv_temperature)
        each, together = uncertainty(p, FLOOR), uncertainty(average(p), FLOOR)
        entropy = row_mean(each) - config.diversity * together.mean()
        commitment = row_mean((z - q).square())
        indices = to_index(q)
        logs = {
            "entropy_each": each.mean(),
            "entropy_together": together.mean(),
            "commitment": commitment.mean(),
            **statistics(indices, config.num_codes),
        }
        loss = config.entropy * entropy + config.commitment * commitment
        indices = indices if config.codebooks > 1 else indices[..., 0]
        return Quantized(merge(straight_through(z, q)), indices, loss, logs)

    def codes(self, indices: Tensor) -> Tensor:
        indices = indices if self.config.codebooks > 1 else indices[..., None]
        return merge(from_index(indices, self.config.bits, self.config.size))


@config
class BSQConfig:
    bits: int = 18
    group: int = 9  # bits whose entropy is taken together; 1: of every bit by itself
    spherical: bool = True
    inv_temperature: float = 100.0
    beta: float = 0.0
    gamma0: float = 1.0
    gamma: float = 1.0
    zeta: float = 1.0

    def __post_init__(self) -> None:
        _check_bits("group", self.group)
        if self.bits < 1 or self.bits % self.group or self.bits > 62:
            raise ValueError(f"bits must be 1..62 and divisible by group, got {self.bits}")
        if self.inv_temperature <= 0:
            raise ValueError(f"inv_temperature must be positive, got {self.inv_temperature}")

    @property
    def num_codes(self) -> int:
        return 2**self.group

    @property
    def inputs(self) -> int:
        return self.bits

    @property
    def width(self) -> int:
        return self.bits

    @property
    def size(self) -> float:
        return self.bits**-0.5 if self.spherical else 1.0

    def build(self) -> "BSQ":
        return BSQ(self)


class BSQ(nn.Module):
    """loss = beta sum_d (q - z)^2 + zeta (gamma0 sum_g mean H(p) - gamma sum_g H(mean p)) / tau^-1.

    An index is that of a group, (B, ..., g): 2^bits would be too many to count.
    """

    def __init__(self, config: BSQConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, f: Tensor, keys: Keys | None = None) -> Quantized:
        """f (B, ..., bits)."""
        config = self.config
        z = F.normalize(f.float(), dim=-1) if config.spherical else f.float()
        q = corner(z, config.size)
        p = probabilities(split(z, config.group), config.size, config.inv_temperature)
        each, together = uncertainty(p).sum(-1), uncertainty(average(p)).sum(-1)
        spread = config.gamma0 * row_mean(each[..., None]) - config.gamma * together
        commitment = row_mean((q - z).square().sum(-1, keepdim=True))
        indices = to_index(split(q, config.group))
        logs = {
            "entropy_each": each.mean(),
            "entropy_together": together,
            **statistics(indices, config.num_codes),
        }
        loss = config.beta * commitment + config.zeta * spread / config.inv_temperature
        signs = straight_through(z, corner(z, 1.0))  # scaled after: so are the gradients released
        return Quantized(config.size * signs, indices, loss, logs)

    def codes(self, indices: Tensor) -> Tensor:
        return merge(from_index(indices, self.config.group, self.config.size))


def split(x: Tensor, bits: int) -> Tensor:
    return rearrange(x, "... (g b) -> ... g b", b=bits)


def merge(x: Tensor) -> Tensor:
    return rearrange(x, "... g b -> ... (g b)")


def corner(z: Tensor, size: float) -> Tensor:
    """The nearest corner; zero belongs to the negative side."""
    return torch.where(z > 0, size, -size).to(z)


def to_index(x: Tensor) -> Tensor:
    """Positive entries are ones, the first of the last axis the most significant."""
    weight = 2 ** torch.arange(x.shape[-1] - 1, -1, -1, device=x.device)
    return ((x > 0) * weight).sum(-1)


def from_index(indices: Tensor, bits: int, size: float = 1.0) -> Tensor:
    """(...) -> corners (..., bits)."""
    shift = torch.arange(bits - 1, -1, -1, device=indices.device)
    return torch.where((indices[..., None] >> shift) & 1 == 1, size, -size)


def probabilities(z: Tensor, size: float, inv_temperature: float) -> Tensor:
    """p = softmax(-inv_temperature |z - c|^2) over corners: (..., g, b) -> (..., g, 2^b)."""
    bits = z.shape[-1]
    corners = from_index(torch.arange(2**bits, device=z.device), bits, size).to(z)
    return (2 * inv_temperature * z @ corners.T).softmax(-1)


def uncertainty(p: Tensor, floor: float = 0.0) -> Tensor:
    """Entropy over the last axis in nats."""
    if floor:
        return -(p * p.clamp(min=floor).log()).sum(-1)
    return torch.special.entr(p).sum(-1)


def average(p: Tensor) -> Tensor:
    """(..., g, c) -> (g, c)."""
    return p.flatten(0, -3).mean(0)


def _check_bits(name: str, bits: int) -> None:
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(
            f"{name} must be 1..{MOST_BITS}, as its entropy is taken over all 2^{name} codes, got "
            f"{bits}; split a longer index into several"
        )

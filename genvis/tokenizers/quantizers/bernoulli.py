"""ELM's binary auto-encoder: bits drawn with learned probabilities, tokens made of sub-codes.

Sub-code decomposition m-k: the m k bits of a position are m tokens of k bits, so that a vocabulary
of 2^(m k) needs only m outputs of 2^k.
Source: Sun et al. 2024, "Elucidating the Design Space of Language Models for Image Generation",
sections 3.2 and 4.2.
Letters: B rows, D width of the features, n bits, d width of the codes, m sub-codes of k bits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.config import config
from genvis.random import Keys
from genvis.tokenizers.quantizers.binary import from_index, split, to_index
from genvis.tokenizers.quantizers.quantized import (
    Quantized,
    row_mean,
    statistics,
    straight_through,
)


@config
class BernoulliConfig:
    bits: int = 12
    subcodes: int = 2
    inputs: int = 32
    width: int = 32
    signed: bool = False  # bits are -1 and 1, and their mean a tanh
    certainty: float = 0.0  # how much a bit should leave the middle

    def __post_init__(self) -> None:
        if min(self.bits, self.subcodes, self.inputs, self.width) < 1:
            raise ValueError("bits, subcodes, inputs and width must be at least 1")
        if self.bits % self.subcodes or self.bits // self.subcodes > 62:
            raise ValueError(f"subcodes must divide the {self.bits} bits, got {self.subcodes}")

    @property
    def num_codes(self) -> int:
        return 2 ** (self.bits // self.subcodes)

    def build(self) -> "Bernoulli":
        return Bernoulli(self)


class Bernoulli(nn.Module):
    """z = sum_n bit_n E_n, bits of probability sigmoid(W f + b), gradients straight to it.

    The released loss applies a sigmoid to the mean of a bit once more: mean s (1 - s).
    """

    def __init__(self, config: BernoulliConfig) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Linear(config.inputs, config.bits)
        self.embed = nn.Embedding(config.bits, config.width)

    def forward(self, f: Tensor, keys: Keys | None = None) -> Quantized:
        """f (B, ..., D); with keys, bits are drawn, without, they are the likelier ones."""
        mean = self.mean(f)
        bits = self.bits(mean, keys)
        s = mean.sigmoid()
        indices = self.tokens(bits)
        logs = statistics(indices, self.config.num_codes)
        z = straight_through(mean, bits) @ self.embed.weight
        return Quantized(z, indices, self.config.certainty * row_mean(s * (1 - s)), logs)

    def mean(self, f: Tensor) -> Tensor:
        """The expected bits (B, ..., n): in [0, 1], or in [-1, 1] if signed."""
        out = F.linear(f.float(), self.proj.weight, self.proj.bias)
        return out.tanh() if self.config.signed else out.sigmoid()

    def bits(self, mean: Tensor, keys: Keys | None = None) -> Tensor:
        share = (mean + 1) / 2 if self.config.signed else mean
        least = 0.5 if keys is None else keys.uniform(mean.shape[1:], mean.device)
        return self.value(share > least)

    def value(self, on: Tensor) -> Tensor:
        return torch.where(on, 1.0, -1.0 if self.config.signed else 0.0)

    def tokens(self, bits: Tensor) -> Tensor:
        """(B, ..., n) -> (B, ..., m): consecutive bits, the first the most significant."""
        return to_index(split(bits, self.config.bits // self.config.subcodes))

    def codes(self, indices: Tensor) -> Tensor:
        on = from_index(indices, self.config.bits // self.config.subcodes) > 0
        return self.value(on.flatten(-2)) @ self.embed.weight

"""What next-scale transformers share: all around the blocks, and attention with cosine scores.

Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale
Prediction", section 3.3 and the released code, whose attribute names and initial values these are.
Letters: B rows, K scales of n_k = p_k^2 tokens, L_k tokens up to and with scale k, L all of them,
C code width, V codes, D width, H heads, M tokens seen before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.backbones.scale_text import TextConfig, TextEmbedding
from genvis.config import config
from genvis.nn.transformer import modulate
from genvis.types import Cond

SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SCALES_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
MAX_SHARPNESS = math.log(100)  # of the learned factor on cosine scores


@dataclass(frozen=True)
class Memory:
    """What the first `scales` scales leave to the next: of every layer, values that are batch first
    and in the type that the network computes in. Nothing reads what all of them leave: it is empty.
    """

    scales: int
    layers: tuple[Any, ...]


@config
class ScaleConfig:
    """What the configs of these networks have in common."""

    scales: tuple[int, ...] = SCALES_256  # sides of the token maps
    codes: int = 4096
    code_width: int = 32
    width: int = 1024
    depth: int = 16
    heads: int = 16
    mlp_ratio: float = 4.0
    num_classes: int = 1000  # 0: no labels
    text: TextConfig | None = None  # cond.text in place of cond.label
    attn_l2_norm: bool = True  # cosine scores, sharpened by a learned factor of every head
    eps: float = 1e-6
    drop_path: float = 0.0  # of the last block; linear from 0
    gate_init: float = 1e-3  # what initial gates, but for the MLP's in M-VAR, are multiplied by

    def __post_init__(self) -> None:
        if not self.scales or self.scales[0] < 1 or sorted(set(self.scales)) != [*self.scales]:
            raise ValueError(f"scales must be positive and grow, got {self.scales}")
        if min(self.codes, self.code_width, self.width, self.depth, self.heads) < 1:
            raise ValueError("codes, code_width, width, depth and heads must be at least 1")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {self.num_classes}")
        if self.num_classes and self.text:
            raise ValueError("num_classes must be 0 with text: labels or text, not both")
        if self.width % self.heads:
            raise ValueError(f"width must be divisible by heads, got {self.width} and {self.heads}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {self.drop_path}")

    @property
    def text_width(self) -> int:
        """Of cond.text; 0: no text."""
        return self.text.width if self.text else 0

    @property
    def drop_paths(self) -> list[float]:
        """From 0 in the first block to `drop_path` in the last."""
        return [self.drop_path * i / max(self.depth - 1, 1) for i in range(self.depth)]


def levels(scales: Sequence[int]) -> Tensor:
    """The number of the scale that each of the L tokens belongs to, (L,) int64."""
    return torch.tensor([k for k, side in enumerate(scales) for _ in range(side * side)])


def block_causal(level: Tensor) -> Tensor:
    """Who sees whom (n, n), True = may attend: a token sees its own scale and those below it."""
    return level[:, None] >= level


def block_diagonal(level: Tensor) -> Tensor:
    """Who sees whom (n, n), True = may attend: a token sees its own scale."""
    return level[:, None] == level


class ScaleTransformer(nn.Module):
    """From what is known below every scale to logits of its tokens; a `ScaleBackbone`.

    A subclass fills `blocks`, which map (x, modulation, pattern, what this block left of the scales
    below or None, *text) to (x, what it leaves); text is nothing, or the tokens (B, L, D) and where
    they are seen (B, L).
    """

    lvl_1L: Tensor  # noqa: N815

    def __init__(self, config: ScaleConfig) -> None:
        super().__init__()
        self.config = config
        d, ends = config.width, [*accumulate(p * p for p in config.scales)]
        self.sizes, self.ends = tuple(p * p for p in config.scales), (0, *ends)
        self.word_embed = nn.Linear(config.code_width, d)
        self.class_emb: nn.Module = ClassEmbedding(config.num_classes + 1, d)
        if config.text:
            self.class_emb = TextEmbedding(config.text, d, config.heads)
        self.pos_start = nn.Parameter(torch.empty(1, self.sizes[0], d))
        self.pos_1LC = nn.Parameter(torch.empty(1, ends[-1], d))
        self.lvl_embed = nn.Embedding(len(ends), d)
        self.register_buffer("lvl_1L", levels(config.scales)[None], persistent=False)
        self.shared_ada_lin: nn.Module = nn.Identity()
        self.blocks = nn.ModuleList()
        self.head_nm = HeadNorm(d, config.eps)
        self.head = nn.Linear(d, config.codes)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        """Logits (B, L_k, V) float32 of the tokens of scales 0, ..., k, from the inputs
        x (B, L_k - n_0, C) of scales 1, ..., k: how many there are, x says.
        """
        lengths = [end - self.ends[1] for end in self.ends[1:]]
        if x.ndim != 3 or x.shape[1] not in lengths:
            raise ValueError(self._expected(f"one of {lengths}", x))
        return self._pass(x, range(lengths.index(x.shape[1]) + 1), cond)[0]

    def prefill(self, x: Tensor, scales: int, cond: Cond) -> tuple[Tensor, Memory]:
        """All logits (B, L_k, V) of the first `scales` scales from their inputs x (B, L_k - n_0, C)
        and what they leave to the next.
        """
        if not 1 <= scales <= len(self.sizes):
            raise ValueError(f"scales must be in 1..{len(self.sizes)}, got {scales}")
        return self._pass(x, range(scales), cond, keep=True)

    def extend(
        self, x: Tensor | None, scale: int, cond: Cond, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        """Logits (B, n_k, V) of one more scale from its inputs x (B, n_k, C), None at scale 0, and
        what the scales below left, None at scale 0.
        """
        known = memory.scales if memory else 0
        if scale != known or not 0 <= scale < len(self.sizes):
            raise ValueError(
                f"the memory holds {known} of {len(self.sizes)} scales: scale {known} is next, "
                f"got {scale}"
            )
        if x is None:
            if not len(cond):
                raise ValueError("scale 0 is as many rows as cond has: give a label, text or drop")
            x = self.pos_1LC.new_empty(len(cond), 0, self.config.code_width)
        return self._pass(x, range(scale, scale + 1), cond, memory, keep=True)

    def pattern(self, scales: range) -> Any:
        """What the blocks must know of the scales in one pass."""
        raise NotImplementedError

    def _pass(
        self,
        x: Tensor,
        scales: range,
        cond: Cond,
        memory: Memory | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Memory]:
        c, *text = self.class_emb(cond, len(x))  # (B, D)
        x, pattern = self._embed(x, c, scales), self.pattern(scales)
        modulation, left = self.shared_ada_lin(c), []
        keep = keep and scales.stop < len(self.sizes)
        for i, block in enumerate(self.blocks):
            before = memory.layers[i] if memory else None
            x, after = block(x, modulation, pattern, before, *text)
            if keep:
                left.append(after)
        logits = self.head(self.head_nm(x, c))
        return logits.float(), Memory(scales.stop, tuple(left))

    def _embed(self, x: Tensor, c: Tensor, scales: range) -> Tensor:
        """The tokens (B, n, D) of the scales in one pass; those of scale 0 are the condition."""
        begin, end = self.ends[scales.start], self.ends[scales.stop]
        given = end - max(begin, self.ends[1])
        if x.shape[1:] != (given, self.config.code_width):
            raise ValueError(self._expected(str(given), x, scales))
        x = self.word_embed(x.to(self.pos_1LC.dtype))
        if scales.start == 0:
            x = torch.cat([c[:, None] + self.pos_start, x], dim=1)
        return x + self.lvl_embed(self.lvl_1L[:, begin:end]) + self.pos_1LC[:, begin:end]

    def _expected(self, length: str, x: Tensor, scales: range | None = None) -> str:
        sides = self.config.scales if scales is None else self.config.scales[: scales.stop]
        which = f"scale {scales.start}" if scales and scales.start else "scales"
        return (
            f"x must be (B, {length}, {self.config.code_width}) for {which} of sides "
            f"{', '.join(map(str, sides))}, got {tuple(x.shape)}"
        )


class ClassEmbedding(nn.Embedding):
    """A row for every class and one for none, which dropped rows and nets without classes take."""

    def forward(self, cond: Cond, rows: int) -> tuple[Tensor]:  # type: ignore[override]
        label, none = cond.label, self.num_embeddings - 1
        if none == 0 or label is None:
            if none and (cond.drop is None or not bool(cond.drop.all())):
                raise ValueError("cond.label is missing: this network is class-conditional")
            label = torch.full((rows,), none, device=self.weight.device)
        elif cond.drop is not None:
            label = label.masked_fill(cond.drop, none)
        return (super().forward(label),)


class HeadNorm(nn.Module):
    """The norm in front of the logits, scaled and shifted by the condition."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.ada_lin(c).chunk(2, dim=1)
        return modulate(self.norm(x), shift, scale)


class Projections(nn.Module):
    """Queries, keys and values of every head, and the way back; keys have no bias.

    They are scaled so that `kernels.attention`, which divides scores by sqrt(D / H), scores by
    s cos(q, k) with a learned s of every head, or by q.k / (4 sqrt(D / H)) without the norm.
    """

    def __init__(self, width: int, heads: int, l2_norm: bool) -> None:
        super().__init__()
        self.heads, self.l2_norm = heads, l2_norm
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4)))
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x (B, n, D): (B, H, n, D / H) each, in one type."""
        q, k, v = self.mat_qkv(x).chunk(3, dim=-1)
        q, v = q + self.q_bias.to(q.dtype), v + self.v_bias.to(v.dtype)
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in (q, k, v))
        if not self.l2_norm:
            return q, 0.25 * k, v  # a view as key would keep all three alive in a memory
        sharpness = self.scale_mul_1H11.clamp(max=MAX_SHARPNESS).exp() * math.sqrt(q.shape[-1])
        q, k = F.normalize(q, dim=-1) * sharpness, F.normalize(k, dim=-1)
        return q.to(v.dtype), k.to(v.dtype), v

    def merge(self, out: Tensor) -> Tensor:
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


class DropPath(nn.Dropout):
    """Leaves out the branch of a row at random in training; the others are scaled up."""

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x.new_ones(len(x), 1, 1)) if self.training and self.p else x


@torch.no_grad()
def initialize(net: ScaleTransformer) -> None:
    """The released initial values outside of the gates, the same for every kind of block."""
    std = math.sqrt(1 / (3 * net.config.width))
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for position in (net.pos_start, net.pos_1LC):
        nn.init.trunc_normal_(position, std=std)
    net.head.weight *= 0.02
    net.head_nm.ada_lin.get_parameter("1.weight").mul_(0.5)
    for name, parameter in net.blocks.named_parameters():
        if name.endswith(("attn.proj.weight", "ffn.fc2.weight")):
            parameter.div_(math.sqrt(2 * net.config.depth))


@torch.no_grad()
def scale_gates(rows: Tensor, gates: int, gate_init: float) -> None:
    """Of a modulation, the first `gates` rows and the others."""
    rows[:gates] *= gate_init
    rows[gates:] *= 0.5


def without_buffers(
    state: Mapping[str, Tensor], net: ScaleTransformer, seen: Tensor, source: str
) -> dict[str, Tensor]:
    """A released state dict without what the scales determine, which must be as `net` has it.

    seen (L, L): who sees whom.
    """
    found = state.get("lvl_1L")
    if found is not None and not torch.equal(found.cpu(), net.lvl_1L):
        sides = ", ".join(str(math.isqrt(n)) for n in found.flatten().bincount().tolist())
        raise ValueError(
            f"{source}: its positions are for the scales {sides}, not "
            f"{', '.join(map(str, net.config.scales))}"
        )
    bias = torch.zeros(seen.shape).masked_fill(~seen, -math.inf)[None, None]
    fixed = {"lvl_1L": net.lvl_1L, "attn_bias_for_masking": bias}
    for i in range(len(net.blocks)):
        fixed[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(net.config.width)
        fixed[f"blocks.{i}.attn.patch_nums"] = torch.tensor(net.sizes, dtype=torch.int32)
    for name in fixed.keys() & state.keys():
        if not torch.equal(state[name].cpu().to(fixed[name].dtype), fixed[name]):
            raise ValueError(f"{source}: {name} is not what its scales make it")
    return {name: value for name, value in state.items() if name not in fixed}


OFFICIAL_ARGUMENTS = {
    "num_classes": "num_classes",
    "depth": "depth",
    "embed_dim": "width",
    "num_heads": "heads",
    "mlp_ratio": "mlp_ratio",
    "norm_eps": "eps",
    "attn_l2_norm": "attn_l2_norm",
    "patch_nums": "scales",
    "drop_path_rate": "drop_path",
    "Cvae": "code_width",  # these two the released class takes from its tokenizer
    "vocab_size": "codes",
}
OFFICIAL_TRAINING = (  # what does not change the network's function
    *("drop_rate", "attn_drop_rate", "cond_drop_rate"),
    *("flash_if_available", "fused_if_available"),
)

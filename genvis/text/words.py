"""A small transformer over whole words, trained together with the generator it speaks to.

Source: Vaswani et al. 2017, "Attention Is All You Need", its encoder, with the norms in front
(Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture").
Letters: B prompts, L tokens, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.nn.transformer import MLP, SelfAttention
from genvis.text.fitting import Unfit, answer
from genvis.text.vocabulary import PAD, SHAPES, SPECIAL, Vocabulary, words_of
from genvis.types import Cond


@config
class WordsConfig:
    words: tuple[str, ...] = SHAPES  # all that prompts may use, in lower case
    slots: int = 64  # rows of the table: 5 special tokens, the words, room for more of them
    length: int = 16  # tokens, with <bos> and <eos>
    width: int = 128
    depth: int = 2
    heads: int = 4
    unfit: Unfit = "error"  # of prompts too long, or with other words

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.length < 3:
            raise ValueError("width, depth and heads must be at least 1, length at least 3")
        if self.width % self.heads:
            raise ValueError(f"width must be divisible by heads, got {self.width} and {self.heads}")
        odd = [word for word in self.words if words_of(word) != [word] or word in SPECIAL]
        if odd or len(set(self.words)) < len(self.words):
            raise ValueError(
                f"words must differ and be single, in lower case; got {odd or 'one twice'}"
            )
        if len(SPECIAL) + len(self.words) > self.slots:
            raise ValueError(
                f"slots must be at least {len(SPECIAL)} + {len(self.words)} words, got {self.slots}"
            )

    def build(self) -> "Words":
        return Words(self)


class Words(nn.Module):
    """Every token sees every word, so that none is constant; features of padding are zeros."""

    constant_tokens = 0

    def __init__(self, config: WordsConfig) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary(config.words, config.length)
        self.tokens = nn.Embedding(config.slots, config.width)
        self.positions = nn.Parameter(torch.empty(config.length, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # words stay N(0, 1): small ones drown in the first block's mean of all, and come out alike
        nn.init.normal_(self.positions, std=0.02)

    def check(self, prompts: Sequence[str]) -> None:
        answer(self.config.unfit, self.vocabulary.problem, prompts)

    def forward(self, prompts: Sequence[str]) -> Cond:
        self.check(prompts)
        ids = self.vocabulary(prompts).to(self.positions.device)  # (B, L)
        text = self.encode(ids)
        return Cond(prompts=tuple(prompts), text=text, text_mask=ids != PAD)

    def encode(self, ids: Tensor) -> Tensor:
        """Features (B, L, D) of tokens (B, L)."""
        seen = ids != PAD
        x = self.tokens(ids) + self.positions
        for block in self.blocks:
            x = block(x, seen[:, None, None])
        return self.norm(x) * seen[..., None]


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), SelfAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width, 4 * width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))

"""Frozen text encoders of the transformers package: CLIP's and T5's.

A model is a local folder as `save_pretrained` writes it, with its tokenizer, or a hub id. It is
loaded when first used, once a process, and never trained or saved with a generator.
Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision" (the last hidden state after its norm, as Rombach et al. 2022 use it); Raffel et al.
2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer".
Letters: B prompts, L tokens, D width.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from genvis.checkpoint import HUB_ID
from genvis.config import config
from genvis.devices import processes
from genvis.text.fitting import Unfit, answer
from genvis.types import Cond

DType = Literal["float32", "bfloat16", "float16"]


@config
class _Frozen:
    """path: a local folder or a hub id; width: of its features; dtype: that it computes in."""

    path: str
    width: int
    length: int
    dtype: DType = "float32"
    unfit: Unfit = "error"  # of prompts too long, or with characters it has no token for

    def __post_init__(self) -> None:
        if self.width < 1 or self.length < 3:
            raise ValueError("width must be at least 1 and length at least 3")


@config
class CLIPText(_Frozen):
    """All tokens of CLIP's text tower, and its last one as pooled (B, D), not projected."""

    width: int = 768
    length: int = 77

    def build(self) -> "FrozenCLIP":
        return FrozenCLIP(self)


@config
class T5Text(_Frozen):
    """All tokens of a T5 encoder; 4096 and 120 are PixArt's, of t5-v1_1-xxl."""

    width: int = 4096
    length: int = 120

    def build(self) -> "FrozenT5":
        return FrozenT5(self)


@dataclass(frozen=True)
class FrozenText:
    """kind, words: the classes of transformers that network and tokenizer are of."""

    config: _Frozen
    kind: ClassVar[str]
    words: ClassVar[str]
    constant_tokens: ClassVar[int] = 0

    def features(self, net: Any, tokens: Any) -> tuple[Tensor, Tensor | None]:
        """Text (B, L, D) and pooled (B, D) of `input_ids` and `attention_mask` (B, L)."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """The sha256 of its weights, its vocabulary and how it is asked."""
        return _identity(self.kind, self.words, self.config)

    @property
    def net(self) -> Any:
        return _network(self.kind, self.config.path, self.config.dtype)

    @property
    def tokenizer(self) -> Any:
        return _tokenizer(self.words, self.config.path)

    def check(self, prompts: Sequence[str]) -> None:
        answer(self.config.unfit, self.problem, prompts)

    def problem(self, prompt: str) -> str | None:
        """What of a prompt would be lost, None if nothing is."""
        ids, most = self.tokenizer(prompt)["input_ids"], self.config.length
        if len(ids) > most:
            lost = self.tokenizer.decode(ids[most - 1 :], skip_special_tokens=True)  # an end stays
            return f"the prompt {prompt!r} has {len(ids)} tokens, and {most} fit: without {lost!r}"
        words = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        marks = {self.tokenizer.unk_token_id, self.tokenizer.eos_token_id}
        if odd := marks & set(words):
            mark = self.tokenizer.convert_ids_to_tokens(min(odd))
            return (
                f"the prompt {prompt!r} has characters that {self.config.path} has no token for, "
                f"or its own mark {mark!r}"
            )
        return None

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Cond:
        """Its text is float32, on the device that work runs on."""
        self.check(prompts)
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.config.length,
            return_tensors="pt",
        ).to(processes().device)
        text, pooled = self.features(self.net, tokens)
        if text.shape[2] != self.config.width:
            raise ValueError(
                f"{self.config.path} has features of width {text.shape[2]}, text.width says "
                f"{self.config.width}"
            )
        mask = tokens["attention_mask"].bool()
        pooled = None if pooled is None else pooled.float()
        return Cond(prompts=tuple(prompts), text=text.float(), text_mask=mask, pooled=pooled)


@dataclass(frozen=True)
class FrozenCLIP(FrozenText):
    """Causal, so that its first token never sees the prompt, nor any word the padding after it."""

    kind: ClassVar[str] = "CLIPTextModel"
    words: ClassVar[str] = "CLIPTokenizer"
    constant_tokens: ClassVar[int] = 1

    def features(self, net: Any, tokens: Any) -> tuple[Tensor, Tensor | None]:
        found = net(input_ids=tokens["input_ids"])
        return found.last_hidden_state, found.pooler_output


@dataclass(frozen=True)
class FrozenT5(FrozenText):
    """Every token sees all words."""

    kind: ClassVar[str] = "T5EncoderModel"
    words: ClassVar[str] = "T5Tokenizer"

    def features(self, net: Any, tokens: Any) -> tuple[Tensor, Tensor | None]:
        return net(**{name: tokens[name] for name in ("input_ids", "attention_mask")})[0], None


def _loaded(kind: str, path: str, **options: Any) -> Any:
    """What transformers calls `kind`, of a local folder or from the hub."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the text encoder {path} needs transformers: pip install 'genvis[text]'"
        ) from error
    if not Path(path).is_dir() and not HUB_ID.fullmatch(path):
        raise ValueError(f"{path}: no such folder, and not a hub id")
    log = logging.getLogger("transformers.modeling_utils")
    level = log.level
    log.setLevel(logging.ERROR)  # an image tower beside the text's is no news; see `_network`
    try:
        return getattr(transformers, kind).from_pretrained(path, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: no text encoder there, nor on the hub: {reason}") from error
    finally:
        log.setLevel(level)


@cache
def _network(kind: str, path: str, dtype: DType) -> Any:
    net, told = _loaded(kind, path, output_loading_info=True)
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"{path}: not the weights of a {kind}: {missing[0]} is missing")
    net = net.to(processes().device, getattr(torch, dtype))
    return net.eval().requires_grad_(False)


@cache
def _tokenizer(words: str, path: str) -> Any:
    return _loaded(words, path)


@cache
def _identity(kind: str, words: str, config: _Frozen) -> str:
    vocabulary = sorted(_tokenizer(words, config.path).get_vocab().items())
    known = hashlib.sha256(json.dumps([kind, config.dtype, config.length, vocabulary]).encode())
    for name, tensor in sorted(_network(kind, config.path, config.dtype).state_dict().items()):
        plain = tensor.cpu().contiguous()
        known.update(f"{name} {tuple(plain.shape)}".encode())
        known.update(plain.flatten().view(torch.uint8).numpy())
    return known.hexdigest()

"""Verifiers by networks of the transformers package, from local folders: any classifier of images
with its own head (DINOv2's among them), and any vision-language model that can answer yes.

Source: as in `verifiers/class_score.py` and `verifiers/token_reward.py`.
Letters: B images, K classes, L tokens, V size of the vocabulary.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from genvis.config import config
from genvis.devices import processes
from genvis.images import to_uint8
from genvis.integrations.transformers_features import IMAGENET, load_local, weights_sha256
from genvis.types import Cond
from genvis.verifiers.class_score import ClassScore, Form
from genvis.verifiers.scoring import Need, PerImage
from genvis.verifiers.token_reward import Mode, check_mode, token_reward

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'


@dataclass(frozen=True)
class ImageClassifier:
    """Images (B, 3, H, W) in [-1, 1] -> logits (B, K), with gradients."""

    net: Any
    sha256: str
    size: int
    differentiable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"{self.net.config.model_type}:{self.sha256[:6]}"

    @property
    def classes(self) -> int:
        return self.net.config.num_labels

    @property
    def device(self) -> torch.device:
        return self.net.device

    def __call__(self, images: Tensor) -> Tensor:
        """The middle square of the short side, to `size`; ImageNet's mean and deviation."""
        side = min(images.shape[-2:])
        top, left = ((each - side) // 2 for each in images.shape[-2:])
        square = images[..., top : top + side, left : left + side]
        x = F.interpolate(square, (self.size, self.size), mode="bicubic", antialias=True)
        mean, std = (x.new_tensor(each).view(-1, 1, 1) for each in IMAGENET)
        return self.net(pixel_values=((x.clamp(-1, 1) + 1) / 2 - mean) / std).logits


@config
class ImageClassifierConfig:
    """path: a folder of AutoModelForImageClassification, whose labels are 0, 1, ... here too."""

    path: str
    size: int = 224
    form: Form = "log_prob"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}")

    def build(self) -> ClassScore:
        net = load_local("AutoModelForImageClassification", self.path).to(processes().device)
        return ClassScore(ImageClassifier(net, weights_sha256(self.path), self.size), self.form)


@dataclass(frozen=True)
class YesProbability(PerImage):
    """A vision-language model's answer to a question about the image; see `token_reward`.

    One image in a pass: prompts of different lengths would have to be padded.
    """

    net: Any
    processor: Any
    config: "YesProbabilityConfig"
    sha256: str
    yes: tuple[int, ...]
    no: tuple[int, ...]
    needs: ClassVar[tuple[Need, ...]] = ("prompts",)
    rows: ClassVar[int] = 1

    @property
    def name(self) -> str:
        return f"{self.config.mode}[{self.net.config.model_type}:{self.sha256[:6]}]"

    @property
    def device(self) -> torch.device:
        return self.net.device

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        assert cond.prompts is not None
        (prompt,), picture = cond.prompts, to_pil_image(to_uint8(images[0]).cpu())
        asked = self._asked(prompt)
        tokens = self._read(asked, picture)
        start = tokens["input_ids"].shape[1]
        if self.config.mode != "answer_nll":
            first = self._logits(tokens)[:, -1:]
            return token_reward(first, self.config.mode, yes=self.yes, no=self.no)
        whole = self._read(asked + self.config.answer, picture)
        ids = whole["input_ids"]
        if not torch.equal(ids[:, :start], tokens["input_ids"]) or ids.shape[1] == start:
            raise ValueError(f"{self.config.answer!r} is no token of its own after the question")
        # the logits before a token are what predicts it
        return token_reward(
            self._logits(whole)[:, start - 1 : -1], "answer_nll", labels=ids[:, start:]
        )

    def _asked(self, prompt: str) -> str:
        content = [
            {"type": "image"},
            {"type": "text", "text": self.config.question.format(prompt)},
        ]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )

    def _read(self, text: str, picture: Any) -> Any:
        tokens = self.processor(images=picture, text=text, return_tensors="pt")
        return tokens.to(self.device, self.net.dtype)  # of these, only pixels are floating point

    def _logits(self, tokens: Any) -> Tensor:
        with torch.no_grad():
            return self.net(**tokens).logits


@config
class YesProbabilityConfig:
    """path: a folder of AutoModelForImageTextToText with its processor and chat template; yes and
    no: words of one token each; answer: what `answer_nll` reads, special tokens included.
    """

    path: str
    mode: Mode = "logodds"
    question: str = QUESTION
    yes: tuple[str, ...] = ("Yes",)
    no: tuple[str, ...] = ("No",)
    answer: str = "Yes"

    def __post_init__(self) -> None:
        check_mode(self.mode, self.yes, self.no)
        if "{}" not in self.question:
            raise ValueError(f"question must hold {{}} for the prompt, got {self.question!r}")

    def build(self) -> YesProbability:
        net = load_local("AutoModelForImageTextToText", self.path).to(processes().device)
        processor, read = load_local("AutoProcessor", self.path), self.mode != "answer_nll"
        yes, no = (_tokens(processor, words) if read else () for words in (self.yes, self.no))
        return YesProbability(net, processor, self, weights_sha256(self.path), yes, no)


def _tokens(processor: Any, words: tuple[str, ...]) -> tuple[int, ...]:
    """The one token of each word. ValueError where it takes several."""
    found = [processor.tokenizer(word, add_special_tokens=False).input_ids for word in words]
    for word, ids in zip(words, found, strict=True):
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens for this model, must be 1")
    return tuple(token for (token,) in found)

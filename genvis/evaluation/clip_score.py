"""CLIPScore: how well images fit their prompts, by a network that is part of the metric's name.

Source: Hessel et al. 2021, "CLIPScore". Letters: B images, E width of the shared space.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genvis.config import config
from genvis.devices import processes
from genvis.evaluation.extraction import metric_name
from genvis.evaluation.paired import SCORE
from genvis.features.clip import ImagesAndWords, images_and_words
from genvis.types import Cond

PREFIX = "A photo depicts "


@config
class CLIPScore:
    """100 cos(image, prompt), as papers on generation have it; `captions`: 2.5 max(cos, 0) of the
    prompt with a prefix, as Hessel et al. do.

    path: a shipped network (`shapes-clip-v1`), or a folder of CLIP, SigLIP or open_clip; name: what
    it is called, such as clip-vit-large-patch14 (default: the folder's name).
    """

    path: str
    name: str | None = None
    captions: bool = False

    def build(self) -> "ClipScorer":
        clip = images_and_words(self.path)
        clip.text("")  # a missing tokenizer is said before any image is made
        return ClipScorer(clip.to(processes().device), self)


@dataclass(frozen=True)
class ClipScorer:
    """Looks at images with their prompts, prepared in 8 bits as published numbers are; ValueError
    where there are none, or where one is longer than the network reads.
    """

    clip: ImagesAndWords
    config: CLIPScore
    _texts: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def identity(self) -> dict[str, Any]:
        return {"clip": self.clip.sha256, "captions": self.config.captions}

    @property
    def metric(self) -> str:
        kind = "CLIPScore-captions" if self.config.captions else "CLIPScore"
        return metric_name(kind, self.config.name or self.clip.name, self.clip.sha256)

    def check(self, prompts: Sequence[str] | None) -> None:
        """ValueError for a prompt that is longer than the network reads, and for none."""
        if prompts is None:
            raise ValueError("clip_score needs images with prompts")
        for prompt in prompts:
            self._text(prompt)

    def __call__(self, pixels: Tensor, cond: Cond, rows: range) -> dict[str, Tensor]:
        self.check(cond.prompts)
        with torch.no_grad():
            words = torch.stack([self._text(prompt) for prompt in cond.prompts or ()])
            x = self.clip.prepare(pixels[: len(words)]).to(self.clip.device)
            cosine = (self.clip.seen(x).double() * words.double()).sum(1).cpu()
        value = 2.5 * cosine.clamp(min=0) if self.config.captions else 100 * cosine
        return {SCORE + self.metric: value}

    @torch.no_grad()
    def _text(self, prompt: str) -> Tensor:
        """(E,); every prompt once."""
        if prompt not in self._texts:
            prefix = PREFIX if self.config.captions else ""
            self._texts[prompt] = self.clip.text(prefix + prompt)
        return self._texts[prompt]

"""How well an image fits its prompt, by CLIP, or by CLIP tuned on what people preferred.

All are the cosine of two embeddings on some scale: `cosine` itself, for potentials; `x100` and
`x2.5`, 100 max(cos, 0) and 2.5 max(cos, 0), as papers report it (Hessel et al.'s 2.5 is Ma et
al.'s); `logit`, exp(logit_scale) cos. A scale never moves a ranking, a clamp ends its gradient.
Source: Radford et al. 2021 (CLIP); Hessel et al. 2021, "CLIPScore"; Kirstain et al. 2023,
"Pick-a-Pic" (PickScore); Wu et al. 2023, "Human Preference Score v2".
Letters: B images, E width of the shared space.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from genvis.config import config
from genvis.devices import processes
from genvis.features.clip import CLIP, ImagesAndWords, images_and_words
from genvis.features.clip_net import VIT_H_14
from genvis.features.prepare import Prepare
from genvis.types import Cond
from genvis.verifiers.scoring import Need, PerImage

Form = Literal["cosine", "x100", "x2.5", "logit"]


def scaled(cosine: Tensor, form: Form, logit_scale: Tensor | float) -> Tensor:
    """Cosines in one of the published forms; `logit_scale` is already exponentiated."""
    forms: dict[Form, Callable[[], Tensor]] = {
        "cosine": lambda: cosine,
        "x100": lambda: 100 * cosine.clamp(min=0),
        "x2.5": lambda: 2.5 * cosine.clamp(min=0),
        "logit": lambda: logit_scale * cosine,
    }
    if form not in forms:
        raise ValueError(f"form must be one of {', '.join(forms)}, got {form!r}")
    return forms[form]()


@dataclass(frozen=True)
class CLIPScore(PerImage):
    """kind: what it is called."""

    clip: ImagesAndWords
    form: Form = "x2.5"
    kind: str = "CLIPScore"
    needs: ClassVar[tuple[Need, ...]] = ("prompts",)
    differentiable: ClassVar[bool] = True
    _texts: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.form}[{self.clip.name}:{self.clip.sha256[:6]}]"

    @property
    def device(self) -> torch.device:
        return self.clip.device

    def check(self, cond: Cond) -> None:
        for prompt in cond.prompts or ():
            self._text(prompt)

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        assert cond.prompts is not None
        words = torch.stack([self._text(prompt) for prompt in cond.prompts])  # (B, E)
        cosine = (self.clip.images(images) * words).sum(1)
        return scaled(cosine, self.form, self.clip.scale)

    def _text(self, prompt: str) -> Tensor:
        """(E,); every prompt by itself and once, whatever it is asked with."""
        if prompt not in self._texts:
            self._texts[prompt] = self.clip.text(prompt)
        return self._texts[prompt]


@config
class CLIPScoreConfig:
    """path: a shipped network (`shapes-clip-v1`), or a folder of CLIP, SigLIP or open_clip with its
    tokenizer's files (`images_and_words`).
    """

    path: str
    form: Form = "x2.5"

    def build(self) -> CLIPScore:
        clip = images_and_words(self.path)
        clip.text("")  # a missing tokenizer is said here
        return CLIPScore(clip.to(processes().device), self.form)


@config
class PickScoreConfig:
    """path: a folder of PickScore_v1; its tokenizer there too, or in `tokenizer`."""

    path: str
    tokenizer: str | None = None
    form: Form = "logit"  # about 20 to 24

    def build(self) -> CLIPScore:
        clip = CLIP.from_folder(self.path, self.tokenizer)
        clip.text("")
        return CLIPScore(clip.to(processes().device), self.form, "PickScore")


@config
class HPSv2Config:
    """path: HPS_v2_compressed.pt or HPS_v2.1_compressed.pt, whose values are not comparable;
    tokenizer: a folder with vocab.json and merges.txt of any CLIP.
    """

    path: str
    tokenizer: str
    form: Form = "cosine"  # about 0.2 to 0.35

    def build(self) -> CLIPScore:
        whole = Prepare(VIT_H_14.size, fit="pad")
        clip = CLIP.from_open_clip(self.path, VIT_H_14, self.tokenizer, whole)
        return CLIPScore(clip.to(processes().device), self.form, "HPSv2")

"""Likeness in an extractor's features: to images that are given, or to an image's own preview.

`Similarity` is DINO's (or CLIP's) image score of subject-driven generation: the mean cosine to the
pictures of a subject. `Consistency` needs no label and no picture: the cosine between what the
sampler expected at a low noise level and what it made; where the two agree, the logits of a
classifier tend to be high.
Source: Ruiz et al. 2023, "DreamBooth", section 4.1; Ma et al. 2025, "Inference-time Scaling for
Diffusion Models beyond Scaling Denoising Steps", section 3 (the noise level is not published).
Letters: N and B images, R given images, D features.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.checkpoint import file_sha256
from genvis.config import config
from genvis.devices import processes
from genvis.features import EXTRACTORS
from genvis.images import load_images
from genvis.random import Keys
from genvis.types import Cond, Sampler
from genvis.verifiers.scoring import Need, PerImage, ask


@dataclass(frozen=True)
class Similarity(PerImage):
    """In [-1, 1]. given: features (R, D), each of length one; sha256: of the images' file."""

    extractor: Any
    given: Tensor
    sha256: str

    @property
    def name(self) -> str:
        known = f"{self.extractor.name}:{self.extractor.sha256[:6]}"
        return f"similarity[{known}] to {len(self.given)} images:{self.sha256[:6]}"

    @property
    def device(self) -> torch.device:
        return self.given.device

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        return (F.normalize(self.extractor(images), dim=1) @ self.given.mT).mean(1)


@config
class SimilarityConfig:
    """images: an .npz of the pictures (ADM's layout, as `sampling/sample.py` writes it)."""

    extractor: Annotated[Any, EXTRACTORS]
    images: str

    def build(self) -> Similarity:
        device = processes().device
        extractor = self.extractor.build().to(device)
        given = extractor(load_images(self.images)[0].to(device))
        return Similarity(extractor, F.normalize(given, dim=1), file_sha256(self.images))


@dataclass(frozen=True)
class Consistency(PerImage):
    """In [-1, 1]. at: how far along the sampler's steps the preview is taken."""

    extractor: Any
    place: torch.device
    at: float = 0.75
    needs: ClassVar[tuple[Need, ...]] = ("previews",)

    @property
    def name(self) -> str:
        return f"consistency-{self.at}[{self.extractor.name}:{self.extractor.sha256[:6]}]"

    @property
    def device(self) -> torch.device:
        return self.place

    def preview_step(self, num_steps: int) -> int:
        """The step before which the preview is taken: neither the first nor the last, whose
        preview is the image itself wherever that step is Euler's.
        """
        if num_steps < 3:
            raise ValueError(f"{self.name} needs a sampler of at least 3 steps, got {num_steps}")
        return min(max(1, round(self.at * num_steps)), num_steps - 2)

    def __call__(self, images: Tensor, cond: Cond, previews: Tensor | None = None) -> Tensor:
        """As of any verifier, with previews (N, 3, H, W) of the same rows; see `with_previews`."""
        both = (images,) if previews is None else (images, previews)
        return ask(self, self._alike, both, cond)

    def _alike(self, images: Tensor, previews: Tensor, cond: Cond) -> Tensor:
        return F.cosine_similarity(self.extractor(images), self.extractor(previews), dim=1)


@config
class ConsistencyConfig:
    extractor: Annotated[Any, EXTRACTORS]
    at: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.at < 1:
            raise ValueError(f"at must be in (0, 1), a share of the steps, got {self.at}")

    def build(self) -> Consistency:
        device = processes().device
        return Consistency(self.extractor.build().to(device), device, self.at)


def with_previews(
    sampler: Sampler, noise: Tensor, cond: Cond, keys: Keys, step: int
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W), as plain sampling makes them, and what they looked like before `step`.

    The preview costs one decode and no evaluation: the step uses the one that it was made from.
    """
    state, previews = sampler.init(noise, cond, keys), None
    for k in range(sampler.num_steps):
        if k == step:
            state = sampler.look(state)
            previews = sampler.preview(state)
        state = sampler.step(state)
    if previews is None:
        raise ValueError(f"step must be in 0..{sampler.num_steps - 1}, got {step}")
    return sampler.preview(state), previews

"""A verifier that is never asked twice about the same image with the same condition."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from genvis.config import config
from genvis.types import Cond, Verifier, VerifierConfig, take
from genvis.verifiers import VERIFIERS
from genvis.verifiers.scoring import (
    Need,
    check_images,
    check_rows,
    needs_of,
    remembers,
    scores_of,
)

LIMIT = 100_000  # scores that are kept; the oldest go first


@dataclass(frozen=True)
class Cached:
    """Scores by content: the images' bytes, and of the condition what the verifier reads (label
    and prompt, of one that does not say). Where gradients are wanted nothing is looked up.
    """

    verifier: Verifier
    limit: int = LIMIT
    per_image: ClassVar[bool] = True
    _scores: dict[bytes, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not getattr(self.verifier, "per_image", True):
            raise ValueError(f"{self.verifier.name} cannot be cached: its scores depend on the set")
        if remembers(self.verifier):
            raise ValueError(f"{self.verifier.name} cannot be cached: it changes as it goes")
        if self.limit < 1:
            raise ValueError(f"limit must be at least 1 score, got {self.limit}")

    @property
    def name(self) -> str:
        return self.verifier.name

    @property
    def needs(self) -> tuple[Need, ...]:
        return needs_of(self.verifier)

    @property
    def differentiable(self) -> bool:
        return bool(getattr(self.verifier, "differentiable", False))

    def check(self, cond: Cond) -> None:
        if hasattr(self.verifier, "check"):
            self.verifier.check(cond)

    def __call__(self, images: Tensor, cond: Cond, previews: Tensor | None = None) -> Tensor:
        if images.requires_grad and torch.is_grad_enabled():
            return scores_of(self.verifier, images, cond, previews)
        for each in (images,) if previews is None else (images, previews):
            check_images(each, images, self.name)
        check_rows(cond, len(images), self.name)
        keys = list(self._keys(images, cond, previews))
        known = {key: self._scores[key] for key in keys if key in self._scores}
        fresh = {key: row for row, key in reversed(list(enumerate(keys))) if key not in known}
        if fresh:
            rows = torch.tensor(sorted(fresh.values()), dtype=torch.int64)
            given = None if previews is None else previews[rows]
            found = scores_of(self.verifier, images[rows], take(cond, rows), given).detach().cpu()
            known |= {keys[row]: score for row, score in zip(rows.tolist(), found, strict=True)}
            self._scores.update({key: known[key] for key in fresh})
            while len(self._scores) > self.limit:
                del self._scores[next(iter(self._scores))]
        return torch.stack([known[key] for key in keys]).to(images.device)

    def _keys(self, images: Tensor, cond: Cond, previews: Tensor | None) -> Iterator[bytes]:
        reads = getattr(self.verifier, "needs", ("label", "prompts"))
        labels = cond.label.tolist() if "label" in reads and cond.label is not None else None
        prompts = cond.prompts if "prompts" in reads else None
        seen = [each for each in (images, previews) if each is not None]
        for row in range(len(images)):
            digest = hashlib.blake2b(digest_size=16)
            digest.update(repr((labels and labels[row], prompts and prompts[row])).encode())
            for each in seen:
                digest.update(f"{each.dtype} {tuple(each.shape[1:])}".encode())
                pixels = each[row].detach().cpu().contiguous()
                digest.update(pixels.view(torch.uint8).numpy().tobytes())
            yield digest.digest()


@config
class CachedConfig:
    of: Annotated[VerifierConfig, VERIFIERS]
    limit: int = LIMIT

    def build(self) -> Cached:
        return Cached(self.of.build(), self.limit)

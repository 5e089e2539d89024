"""What verifiers share: what they need, how images are checked, how many go in at once.

Letters: N images, B rows of a pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from genvis.types import Cond, Verifier, take

Need = Literal["label", "prompts", "previews"]
EIGHT_BIT = 8  # images never below 0 that reach this are in 0..255, not overshoot


@dataclass(frozen=True)
class PerImage:
    """A verifier that judges every image by itself; a subclass has `name` and `score`.

    needs: what of the condition it reads, and whether previews; differentiable: whether its scores
    have gradients in the images; per_image: a score is the same in whatever call it is asked for.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    differentiable: ClassVar[bool] = False
    per_image: ClassVar[bool] = True
    rows: ClassVar[int] = 16  # images in one pass

    @property
    def name(self) -> str:
        """What is measured, by which weights."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where images must be."""
        return torch.device("cpu")

    def check(self, cond: Cond) -> None:
        """ValueError for a condition that has what is needed, but is not one that it knows."""

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        """(B,) of images (B, 3, H, W) in [-1, 1]; cond holds what `needs` says and no more."""
        raise NotImplementedError

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        """Scores (N,) float32 of images (N, 3, H, W), clamped to [-1, 1] as a file would be.

        Every pass has `rows` images, the last one padded: a score is the same to the last bit
        whatever it is asked with. ValueError for images that are none, or a need that is not met.
        """
        return ask(self, self.score, (images,), cond)


def ask(
    verifier: PerImage, score: Callable[..., Tensor], images: tuple[Tensor, ...], cond: Cond
) -> Tensor:
    """What `PerImage` does: `score(*images, cond)` of checked images, pass by pass."""
    for each in images:
        check_images(each, images[0], verifier.name)
    require(verifier, cond, previews=len(images) > 1)
    n, home = len(images[0]), images[0].device
    own = Cond(**{need: getattr(cond, need) for need in verifier.needs if need != "previews"})
    check_rows(own, n, verifier.name)
    found = []
    for start in range(0, n, verifier.rows):
        at = torch.arange(start, start + verifier.rows).clamp(max=n - 1)
        parts = [each[at].float().clamp(-1, 1).to(verifier.device) for each in images]
        found.append(score(*parts, take(own, at))[: n - start].float().to(home))
    scores = torch.cat(found)
    if not scores.isfinite().all():
        bad = int((~scores.isfinite()).sum())
        raise ValueError(f"{verifier.name}: {bad} of {n} scores are NaN or infinite")
    return scores


def check_images(images: Tensor, like: Tensor, who: str) -> None:
    """ValueError unless (N, 3, H, W) floating point, finite, in [-1, 1] but for a network's
    overshoot, and as many as `like`.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise ValueError(f"{who}: images must be (N, 3, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"{who}: images must be floating point in [-1, 1], got {images.dtype}")
    if len(images) != len(like):
        raise ValueError(f"{who}: {len(images)} previews for {len(like)} images")
    least, most = images.detach().aminmax()
    if not (least.isfinite() and most.isfinite()):
        raise ValueError(f"{who}: images hold NaN or infinity")
    if least >= 0 and most >= EIGHT_BIT:
        raise ValueError(f"{who}: images must be in [-1, 1], got 0 to {most:.0f}, as if of 8 bits")


def check_rows(cond: Cond, n: int, who: str) -> None:
    """ValueError unless there are n conditions, or none."""
    if len(cond) not in (0, n):
        raise ValueError(f"{who}: {n} images for {len(cond)} conditions")


def needs_of(verifier: Verifier) -> tuple[Need, ...]:
    """What a verifier needs; nothing, where it does not say."""
    return tuple(getattr(verifier, "needs", ()))


def scores_of(
    verifier: Verifier, images: Tensor, cond: Cond, previews: Tensor | None = None
) -> Tensor:
    """`verifier(images, cond)`; with the previews too, if it is one that needs them. ValueError
    unless it gives one finite score an image.
    """
    given = (previews,) if "previews" in needs_of(verifier) else ()
    scores = verifier(images, cond, *given)
    if scores.shape != (len(images),):
        raise ValueError(
            f"the verifier {verifier.name} must give one score an image, got "
            f"{tuple(scores.shape)} for {len(images)} images"
        )
    if not scores.isfinite().all():
        raise ValueError(f"the verifier {verifier.name} gave a score that is not finite")
    return scores


def remembers(verifier: Verifier) -> bool:
    """Whether its scores depend on the images chosen before."""
    return hasattr(verifier, "accept")


def grown(verifier: Verifier, images: Tensor) -> Verifier:
    """The verifier once these images (N, 3, H, W) are chosen: the same, if it does not remember."""
    found: Verifier = verifier.accept(images) if remembers(verifier) else verifier  # type: ignore[attr-defined]
    return found


def require(
    verifier: Verifier,
    cond: Cond,
    *,
    previews: bool = False,
    gradients: bool = False,
    across_calls: bool = True,
) -> None:
    """ValueError, one line, unless the verifier serves: what a search asks before it spends.

    previews: the caller can give them; gradients: it wants some; across_calls: it compares scores
    of several calls, as nearly all do.
    """
    _meets_needs(verifier, cond, previews)
    if gradients and not getattr(verifier, "differentiable", False):
        raise ValueError(f"{verifier.name} has no gradients in the images")
    if across_calls and not getattr(verifier, "per_image", True):
        raise ValueError(
            f"{verifier.name} ranks the images of one call, so its scores cannot be compared with "
            "those of another; an ensemble of z-scores can"
        )
    if hasattr(verifier, "check"):
        verifier.check(cond)


def _meets_needs(verifier: Verifier, cond: Cond, previews: bool) -> None:
    given: dict[Need, Any] = {"label": cond.label, "prompts": cond.prompts}
    for need in needs_of(verifier):
        if need == "previews" and not previews:
            raise ValueError(f"{verifier.name} needs a preview of every image, and gets none")
        if need != "previews" and given[need] is None:
            raise ValueError(f"{verifier.name} needs cond.{need}, and it was not given")

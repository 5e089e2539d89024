"""Features of images, carrying the name and hash of the weights that made them.

Letters: N images, D features.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from genvis.evaluation.statistics import Statistics, check_features
from genvis.features.inception import is_published
from genvis.images import from_uint8, to_uint8


class Extractor(Protocol):
    """Images (B, 3, H, W) in [-1, 1] -> features (B, D) float32; sha256 of its weight file."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    def __call__(self, images: Tensor) -> Tensor: ...


class HeadedExtractor(Extractor, Protocol):
    """An extractor with several outputs of one pass, `features` among them, each (B, ...)."""

    @property
    def resize(self) -> str:
        """How it brings images to its size."""
        ...

    def heads(self, images: Tensor) -> dict[str, Tensor]: ...
    def to(self, device: torch.device | str) -> Self: ...


class ExtractorConfig(Protocol):
    def build(self) -> HeadedExtractor: ...


@dataclass(frozen=True)
class Features:
    """values (N, D), and who made them."""

    values: Tensor
    extractor: str
    sha256: str

    def __len__(self) -> int:
        return len(self.values)

    def statistics(self) -> Statistics:
        return Statistics.of(self.values, self.sha256)

    @property
    def metric(self) -> str:
        """The name of a Frechet distance between such features, as in FD[digits-cnn-v1:3fa9c1]."""
        return frechet_name(self.extractor, self.sha256)


def extract(extractor: Extractor, images: Tensor, batch: int = 256) -> Features:
    """Features of images (N, 3, H, W) in [-1, 1], rounded to 8 bits first, as files would be."""
    check_images(images)
    frechet_name(extractor.name, extractor.sha256)  # refuses a nameless extractor before the work
    rounded = images_as_stored(images)
    with torch.no_grad(), full_float32():
        values = torch.cat([extractor(rows) for rows in rounded.split(batch)])
    check_features(values)
    return Features(values, extractor.name, extractor.sha256)


@contextmanager
def full_float32() -> Iterator[None]:
    """Without TF32, in which a GPU convolves unless told: it moves the second digit of an FID."""
    matmul = torch.backends.cuda.matmul
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        matmul.fp32_precision = conv.fp32_precision = "ieee"
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before


def frechet_name(extractor: str, sha256: str, head: str = "features") -> str:
    """FD[name:first six digits of the hash]; FID[...] for the published Inception's and no other;
    with a leading s for its spatial features.

    ValueError for an incomplete hash, or for other weights whose name claims to be Inception's.
    """
    published = is_published(extractor, sha256)
    kind = "FID" if published else "FD"
    return metric_name("s" * (head == "spatial") + kind, extractor, sha256)


def metric_name(kind: str, extractor: str, sha256: str) -> str:
    """KIND[name:first six digits of the hash]; ValueError as in `frechet_name`."""
    lowered = sha256.lower()
    if len(lowered) != 64 or set(lowered) - set("0123456789abcdef"):
        raise ValueError(f"extractor {extractor!r}: sha256 must be 64 hex digits, got {sha256!r}")
    claims = not extractor or "fid" in extractor.lower() or "inception" in extractor.lower()
    if claims and not is_published(extractor, lowered):
        raise ValueError(f"an extractor with other weights cannot be called {extractor!r}")
    return f"{kind}[{extractor}:{lowered[:6]}]"


def images_as_stored(images: Tensor) -> Tensor:
    """Images in [-1, 1] after a round trip through uint8."""
    return from_uint8(to_uint8(images))


def fingerprint(images: Tensor) -> str:
    """sha256 of the 8-bit pixels of images (N, 3, H, W) in [-1, 1], for records."""
    return hashlib.sha256(to_uint8(images).cpu().contiguous().numpy().tobytes()).hexdigest()


def check_images(images: Tensor) -> None:
    """ValueError unless (N, 3, H, W) floating point, N >= 1, in [-1, 1] but for a network's
    overshoot, which rounding to 8 bits clips.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"images must be (N, 3, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in [-1, 1], got {images.dtype}")
    if images.isnan().any():
        raise ValueError("images must not hold NaN")

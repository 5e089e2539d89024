"""What samples are measured against: statistics of real images that know where they come from.

A reference file (`save_reference`) is a safetensors file of the mean and scatter of every head, and
the features themselves where asked, that names the extractor and its weights' hash, how images were
resized, how many there were, and their hash; it is refused by any other extractor.
Letters: N images, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from genvis.checkpoint import load_tensors, save_tensors
from genvis.evaluation.extraction import HeadedExtractor
from genvis.evaluation.observe import Seen
from genvis.evaluation.statistics import Statistics, check_moments
from genvis.random import permutation

FORMAT = "genvis-reference-1"


@dataclass(frozen=True)
class Reference:
    """n: None where nobody wrote it down; sha256: of the images, or of the published file;
    published: whether papers measure against this one; held_out: other real images, for a floor.
    """

    name: str
    sha256: str
    n: int | None
    moments: dict[str, Statistics]
    features: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    published: bool = False
    held_out: Seen | None = None

    def statistics(self, head: str) -> Statistics:
        if head not in self.moments:
            raise ValueError(f"reference {self.name} has no statistics of {head}")
        return self.moments[head]

    def rows(self, head: str) -> Tensor:
        """The features (N, D) of each image. ValueError if only their statistics are there."""
        self.check_rows(head)
        return self.features[head]()

    def check_rows(self, head: str) -> None:
        if head not in self.features:
            raise ValueError(f"reference {self.name} has no {head} image by image")

    def floor(self, head: str, n: int) -> Statistics | None:
        """Of n held-out images, or of all where they are fewer; None where there are none."""
        if self.held_out is None:
            return None
        if n >= self.held_out.n:
            return self.held_out.statistics(head)
        chosen = permutation(self.held_out.n, 0)[:n].sort().values
        return Statistics.of(self.held_out.rows(head)[chosen], self.held_out.sha256)


def of_seen(seen: Seen, name: str, held_out: Seen | None = None) -> Reference:
    """A reference of images that were looked at."""
    heads = sorted(seen.names & {"features", "spatial"})
    return Reference(
        name,
        seen.images_sha256,
        seen.n,
        {head: seen.statistics(head) for head in heads},
        {head: partial(seen.rows, head) for head in sorted(seen.names)},
        held_out=held_out,
    )


def save_reference(path: str | Path, seen: Seen, *, rows: bool = True) -> None:
    """Write a reference file; `rows`: also the features, which KID, precision and recall need."""
    tensors = {}
    for head, statistics in of_seen(seen, "").moments.items():
        for name in ("mean", "rest", "m2"):
            tensors[f"{head}.{name}"] = getattr(statistics, name)
        if rows:
            tensors[f"{head}.rows"] = seen.rows(head)
    known = {
        "format": FORMAT,
        "extractor": seen.extractor,
        "extractor_sha256": seen.sha256,
        "resize": seen.resize,
        "images_sha256": seen.images_sha256,
        "n": str(seen.n),
    }
    save_tensors(path, tensors, known)


def load_reference(path: str | Path, extractor: HeadedExtractor) -> Reference:
    """A reference file made with this very extractor. ValueError names what differs."""
    path = Path(path)
    tensors = load_tensors(path)
    with safe_open(path, "pt") as file:
        known = file.metadata() or {}
    if known.get("format") != FORMAT:
        raise ValueError(f"{path}: not a reference file ({FORMAT})")
    wanted = {
        "extractor": extractor.name,
        "resize": extractor.resize,
        "extractor_sha256": extractor.sha256,
    }
    for key, value in wanted.items():
        if known[key] != value:
            raise ValueError(
                f"{path}: a reference of another extractor: {key} {known[key]} there, {value} here"
            )
    n, heads = int(known["n"]), [k.removesuffix(".mean") for k in tensors if k.endswith(".mean")]
    stored = [head for head in heads if f"{head}.rows" in tensors]
    return Reference(
        path.name,
        known["images_sha256"],
        n,
        {head: _statistics(tensors, head, n, extractor.sha256) for head in heads},
        {head: partial(tensors.__getitem__, f"{head}.rows") for head in stored},
    )


def _statistics(tensors: dict[str, Tensor], head: str, n: int, sha256: str) -> Statistics:
    mean, rest, m2 = (tensors[f"{head}.{name}"] for name in ("mean", "rest", "m2"))
    check_moments(mean + rest, m2)
    return Statistics(n, mean, rest, m2, sha256)

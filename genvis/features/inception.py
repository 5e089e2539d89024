"""FID-Inception features, the only ones a distance called FID may use, and their weight files.

Source: Heusel et al. 2017, section 4, with the weight files that pytorch-fid, torch-fidelity and
clean-fid publish. Nothing is ever downloaded: a file is looked for and its hash checked.
Letters: B images, H W their size.
"""

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from genvis.checkpoint import load_state
from genvis.config import config
from genvis.features.inception_net import Activations, InceptionNet
from genvis.features.resize import resize
from genvis.images import to_uint8

VARIABLE = "GENVIS_WEIGHTS"
ROWS = 64  # images in one pass of an extractor: a gigabyte of activations


@dataclass(frozen=True)
class Published:
    """A weight file as its authors released it."""

    file: str
    sha256: str
    size: int  # bytes
    scripted: bool = False  # TorchScript: code and weights in one

    def __str__(self) -> str:
        return f"{self.file} ({self.size:,} bytes, sha256 {self.sha256})"


CONVERTED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SCRIPTED = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
PUBLISHED = (  # in the order in which one place is searched
    Published("pt_inception-2015-12-05-6726825d.pth", CONVERTED, 95_628_359),  # pytorch-fid
    Published("weights-inception-2015-12-05-6726825d.pth", CONVERTED, 95_628_359),  # torch-fidelity
    Published("inception-2015-12-05.pt", SCRIPTED, 95_607_719, scripted=True),  # clean-fid
)


def _by_128(values: Tensor) -> Tensor:
    return (values - 128) / 128


def _by_255(values: Tensor) -> Tensor:
    return 2 * (values / 255) - 1


SCALES: dict[str, Callable[[Tensor], Tensor]] = {  # by resizer; [0, 255] to what the network sees
    "clean": _by_128,
    "legacy_pytorch": _by_255,
    "tf1_bilinear": _by_128,
    "torchmetrics_antialias": _by_128,
}


def prepare(pixels: Tensor, mode: str) -> Tensor:
    """Pixels (B, 3, H, W) uint8 to the network's input (B, 3, 299, 299), about [-1, 1]."""
    resized = resize(pixels, mode)  # first: it refuses an unknown mode
    return SCALES[mode](resized)


def is_published(name: str, sha256: str) -> bool:
    """Whether features of this name and weight hash are those of the published Inception."""
    named = name in {f"inception-{mode}" for mode in SCALES}
    return named and sha256.lower() in {CONVERTED, SCRIPTED}


class ScriptedInception(nn.Module):
    """clean-fid's TorchScript file, of which only the pool features are used."""

    def __init__(self, script: Any) -> None:
        super().__init__()
        self.script = script.eval()

    def pool(self, x: Tensor) -> Tensor:
        """Features (B, 2048) of x (B, 3, 299, 299); its own resizer is passed by."""
        return self.script.layers(x).flatten(1)


@dataclass(frozen=True)
class Inception:
    """Callable as an extractor: images (B, 3, H, W) in [-1, 1] -> pool features (B, 2048), float32.

    Images are rounded to 8 bits, then resized by `mode`, a name of `features.resize`. The name is
    `WEIGHTS-MODE`; `inception` is reserved for the published weights.
    """

    net: InceptionNet | ScriptedInception
    sha256: str
    mode: str = "clean"
    weights: str = "inception"

    def __post_init__(self) -> None:
        if self.mode not in SCALES:
            raise ValueError(f"mode must be one of {', '.join(SCALES)}, got {self.mode!r}")
        lowered = self.weights.lower()
        claimed = "inception" in lowered or "fid" in lowered or not lowered
        if claimed and not is_published(self.name, self.sha256):
            raise ValueError(
                f"weights with sha256 {self.sha256!r} are not the published Inception and "
                f"cannot be called {self.weights!r}"
            )
        self.net.eval().requires_grad_(False)

    @property
    def name(self) -> str:
        return f"{self.weights}-{self.mode}"

    @classmethod
    def from_published(cls, mode: str = "clean", path: str | Path | None = None) -> Self:
        """The published weights, on the CPU: from `path` (a file, or a folder that holds one), else
        from $GENVIS_WEIGHTS (likewise), torch's hub cache, or where clean-fid puts its file.

        ValueError if there is none, or if the first one found has another hash.
        """
        found = find(path)
        data = found.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        files = [file for file in PUBLISHED if file.file == found.name] or list(PUBLISHED)
        match = next((file for file in files if file.sha256 == digest), None)
        if match is None:
            raise ValueError(
                f"{found}: damaged, or another file: it has {len(data):,} bytes and sha256 "
                f"{digest}; wanted {' or '.join(map(str, files))}; {_searched(path)}"
            )
        if match.scripted:  # code: run only now that it is known to be the published one
            script = torch.jit.load(io.BytesIO(data), map_location="cpu")
            return cls(ScriptedInception(script), digest, mode)
        return cls(_net(data, found), digest, mode)

    @classmethod
    def from_file(cls, path: str | Path, weights: str, mode: str = "clean") -> Self:
        """Any weights of the network's layout, `.safetensors` or a file of `torch.save`, under a
        name of their own.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        data = path.read_bytes()
        return cls(_net(data, path), hashlib.sha256(data).hexdigest(), mode, weights)

    @property
    def resize(self) -> str:
        return self.mode

    def to(self, device: torch.device | str) -> Self:
        return replace(self, net=self.net.to(device))

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """What metrics read, in one pass: `features`, and from files of tensors also `spatial` (for
        sFID) and `logits` (without the bias, for IS).
        """
        if not isinstance(self.net, InceptionNet):
            return {"features": self(images)}
        parts = [self.activations(part) for part in images.split(ROWS)]
        return {
            "features": torch.cat([part.pool for part in parts]).float(),
            "spatial": torch.cat([part.spatial for part in parts]).float(),
            "logits": torch.cat([part.logits for part in parts]).float(),
        }

    def __call__(self, images: Tensor) -> Tensor:
        parts = to_uint8(images).split(ROWS)
        with torch.no_grad():
            return torch.cat([self.net.pool(prepare(part, self.mode)).float() for part in parts])

    def activations(self, images: Tensor) -> Activations:
        """Everything that metrics read, in one pass. ValueError for a TorchScript file."""
        if not isinstance(self.net, InceptionNet):
            raise ValueError(f"only pool features come from TorchScript; use {PUBLISHED[0]}")
        with torch.no_grad():
            return self.net(prepare(to_uint8(images), self.mode))


@config
class InceptionFeatures:
    """The published weights, wherever they are (see `Inception.from_published`); or other weights
    of the same layout from a file, under a name of their own.
    """

    resize: str = "clean"  # clean, legacy_pytorch, tf1_bilinear or torchmetrics_antialias
    path: str | None = None
    weights: str | None = None  # the name of weights that are not the published ones

    def __post_init__(self) -> None:
        if self.resize not in SCALES:
            raise ValueError(f"resize must be one of {', '.join(SCALES)}, got {self.resize!r}")
        if self.weights is not None and self.path is None:
            raise ValueError(f"weights {self.weights!r} need the path of their file")

    def build(self) -> Inception:
        if self.weights is None:
            return Inception.from_published(self.resize, self.path)
        return Inception.from_file(str(self.path), self.weights, self.resize)


def find(path: str | Path | None = None) -> Path:
    """The first published weight file by name in the places of `from_published`, unverified."""
    for place in _places(path).values():
        if place is not None and place.is_file():
            return place
        for file in PUBLISHED:
            if place is not None and (place / file.file).is_file():
                return place / file.file
    raise ValueError(
        f"no Inception weights: {_searched(path)} for {' or '.join(map(str, PUBLISHED))}; put one "
        "of them there, as nothing is downloaded"
    )


def _places(path: str | Path | None) -> dict[str, Path | None]:
    """Where to look, in order, by a name for people; a given path is the only place."""
    if path is not None:
        return {"the path given": Path(path)}
    given = os.environ.get(VARIABLE)
    return {
        f"${VARIABLE}": Path(given) if given else None,
        "torch's hub cache": Path(torch.hub.get_dir()) / "checkpoints",
        "clean-fid's folder": Path() if os.name == "nt" else Path(os.sep, "tmp"),
    }


def _searched(path: str | Path | None) -> str:
    places = [f"{name} ({place or 'not set'})" for name, place in _places(path).items()]
    return f"looked in {', '.join(places)}"


def _net(data: bytes, path: Path) -> InceptionNet:
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: truncated, or not a file of tensors: {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not tensors by name")
    net = InceptionNet()
    kept = {k: v for k, v in state.items() if not k.endswith(".num_batches_tracked")}  # of training
    load_state(net, kept, str(path))
    return net

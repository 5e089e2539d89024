"""LPIPS: the distance between two images in the features of an image classifier, calibrated.

sum over taps k of the mean over positions of w_k . (a_k - b_k)^2, where a_k, b_k are maps whose
channels have length one and w_k >= 0 are learned. The weights are two files, never downloaded: the
torchvision backbone and the heads of the lpips package (version 0.1).
Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
section 3. Letters: B pairs, C channels, h w map size.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from genvis.checkpoint import load_state

VARIABLE = "GENVIS_LPIPS_WEIGHTS"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10


@dataclass(frozen=True)
class Backbone:
    """taps: (index in torchvision's `features`, channels) of the ReLUs that are compared."""

    file: str
    heads: str
    taps: tuple[tuple[int, int], ...]


BACKBONES = {
    "alex": Backbone(
        "alexnet-owt-7be5be79.pth", "alex.pth", ((1, 64), (4, 192), (7, 384), (9, 256), (11, 256))
    ),
    "vgg": Backbone(
        "vgg16-397923af.pth", "vgg.pth", ((3, 64), (8, 128), (15, 256), (22, 512), (29, 512))
    ),
}


class LPIPSNet(nn.Module):
    """`features` as in torchvision; `lin0` to `lin4` as in the lpips package."""

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: str) -> None:
        super().__init__()
        import torchvision

        known = BACKBONES[backbone]
        makers = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}
        self.features = makers[backbone](weights=None).features
        for relu in self.features:
            if isinstance(relu, nn.ReLU):
                relu.inplace = False  # a tap must keep its values
        self.taps = [index for index, _ in known.taps]
        for k, (_, channels) in enumerate(known.taps):
            self.add_module(f"lin{k}", _Head(channels))
        self.register_buffer("shift", torch.tensor(SHIFT).view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(-1, 1, 1), persistent=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The compared maps (B, C, h, w) of images (B, 3, H, W) in [-1, 1], of length one."""
        x, found = (images - self.shift) / self.scale, []
        for index, layer in enumerate(self.features[: self.taps[-1] + 1]):
            x = layer(x)
            if index in self.taps:
                found.append(x / (x.norm(dim=1, keepdim=True) + EPS))  # its gradient at 0 is 0
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (B,) of images (B, 3, H, W) in [-1, 1]."""
        total = a.new_zeros(len(a))
        for k, (x, y) in enumerate(zip(self.maps(a), self.maps(b), strict=True)):
            total = total + self.get_submodule(f"lin{k}")((x - y).square()).mean((1, 2, 3))
        return total


class _Head(nn.Module):
    """A weight per channel, under the name that its file gives it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


@dataclass(frozen=True)
class LPIPS:
    """Two images (B, 3, H, W) in [-1, 1] -> distances (B,); sha256 of both weight files."""

    net: LPIPSNet
    name: str
    sha256: str

    @classmethod
    def from_weights(cls, backbone: str = "alex", folder: str | Path | None = None) -> Self:
        """From a folder (default: $GENVIS_LPIPS_WEIGHTS) that holds the two files of `BACKBONES`.

        ValueError if a file is missing, or does not fit.
        """
        if backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {backbone!r}")
        known, place = BACKBONES[backbone], folder or os.environ.get(VARIABLE)
        if place is None:
            raise ValueError(
                f"no LPIPS weights: give a folder or set ${VARIABLE} to one with {known.file} "
                f"(torchvision) and {known.heads} (lpips 0.1), as nothing is downloaded"
            )
        state, digest = {}, hashlib.sha256()
        for file in (known.file, known.heads):
            path = Path(place) / file
            if not path.is_file():
                raise ValueError(f"no LPIPS weights: {path} is missing, and nothing is downloaded")
            digest.update(path.read_bytes())
            try:
                state.update(torch.load(path, map_location="cpu", weights_only=True))
            except Exception as error:  # whatever a damaged pickle raises
                raise ValueError(f"{path}: truncated, or not a file of tensors: {error}") from error
        net = LPIPSNet(backbone)
        own = {name: v for name, v in state.items() if not name.startswith("classifier.")}
        load_state(net, own, str(place))
        net.eval().requires_grad_(False)
        return cls(net, f"lpips-{backbone}", digest.hexdigest())

    def to(self, device: torch.device | str) -> Self:
        return replace(self, net=self.net.to(device))

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            return self.net(a, b)

"""How well a tokenizer gives images back, how much of its codebook it uses, what it costs.

The pairs land in a folder, so that distances between them (rFD, PSNR, SSIM, LPIPS) are those of any
two sets of images: `sampling/evaluate.py FOLDER/reconstructions.npz SUITE --against
FOLDER/originals.npz`. Letters: N images, K codes.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from genvis.config import config
from genvis.data import DATASETS
from genvis.evaluation.extraction import images_as_stored
from genvis.evaluation.records import Record, append, stamped
from genvis.evaluation.similarity import likeness
from genvis.evaluation.svm import PixelSVM
from genvis.images import save_grid, save_npz, to_uint8
from genvis.tokenizers.quantizers.quantized import entropy, histogram, usage
from genvis.types import DatasetConfig

GIGA = 1e9


@config
class Reconstructing:
    """Held-out images through a tokenizer and back."""

    data: Annotated[DatasetConfig, DATASETS]
    count: int | None = None  # default: all held-out images
    batch: int = 64
    shown: int = 10  # columns of the picture: originals over reconstructions
    svm: bool = False  # whether a judge of real images still recognises them

    def __post_init__(self) -> None:
        if min(self.batch, self.shown, self.count or 1) < 1:
            raise ValueError("count, batch and shown must be at least 1")

    def report(self, net: nn.Module, folder: str | Path, subject: str) -> list[Record]:
        """Pairs, a picture and records in `folder`; `net` is a trained tokenizer in eval mode."""
        folder, held_out = Path(folder), self.data.build("val")
        rows = range(min(self.count or len(held_out), len(held_out)))
        batch = held_out[rows]
        device = next(net.parameters()).device
        images = batch.x.to(device)
        made, seconds = self._reconstruct(net, images)
        labels = batch.cond.label
        labels = torch.zeros(len(rows), dtype=torch.int64) if labels is None else labels
        save_npz(folder / "originals.npz", images.cpu(), labels)
        save_npz(folder / "reconstructions.npz", made.cpu(), labels)
        shown = min(self.shown, len(rows))
        save_grid(folder / "pairs.png", torch.cat([images[:shown], made[:shown]]).cpu(), shown)
        values = {**quality(images, made), **cost(net, images[:1])}
        values["images per second"] = len(rows) / seconds
        if hasattr(net, "token_maps"):
            values |= codes(self._tokens(net, images), net.num_codes)  # type: ignore[arg-type]
        if self.svm:
            values["SVM accuracy"] = self._judge(made.cpu(), labels)
        records = [
            stamped(metric=name, value=value, subject=subject, n=len(rows))
            for name, value in values.items()
        ]
        append(folder / "records.jsonl", *records)
        return records

    @torch.no_grad()
    def _reconstruct(self, net: nn.Module, images: Tensor) -> tuple[Tensor, float]:
        net(images[: self.batch])  # warm
        start = time.monotonic()
        made = torch.cat([net(part).images.float() for part in images.split(self.batch)])
        return images_as_stored(made.clamp(-1, 1)), time.monotonic() - start

    def _tokens(self, net: Any, images: Tensor) -> dict[str, Tensor]:
        parts = [net.token_maps(part) for part in images.split(self.batch)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _judge(self, made: Tensor, labels: Tensor) -> float:
        train = self.data.build("train")
        real = train[range(len(train))]
        assert real.cond.label is not None
        return PixelSVM.fit(real.x, real.cond.label).accuracy(made, labels)


def quality(images: Tensor, made: Tensor) -> dict[str, float]:
    """PSNR, SSIM from 11 pixels on, PSNR's 5th percentile; images (N, 3, H, W) in [-1, 1]."""
    found = likeness(to_uint8(made).cpu(), to_uint8(images).cpu())
    means = {name.upper(): each.mean for name, each in found.items()}
    return {**means, "PSNR, fifth percentile": found["psnr"].fifth}


def codes(maps: Mapping[str, Tensor], num_codes: int) -> dict[str, float]:
    """Usage and perplexity overall, and for each map its codes as a share of those it could show,
    min(K, number of its tokens): a collapsed coarse scale hides in the total.
    """
    counts = {name: histogram(tokens, num_codes).cpu() for name, tokens in maps.items()}
    total = torch.stack([*counts.values()]).sum(0)
    values = {
        "codebook usage": float(usage(total)),
        "codebook perplexity": float(entropy(total).exp()),
    }
    for name, count in counts.items() if len(counts) > 1 else ():
        used = int((count > 0).sum())
        values[f"codes at {name}"] = used
        values[f"share of codes at {name}"] = used / min(num_codes, int(count.sum()))
        values[f"perplexity at {name}"] = float(entropy(count).exp())
    return values


def cost(net: nn.Module, image: Tensor) -> dict[str, float]:
    """Parameters in millions, and billions of operations (two a multiply-add) for one image."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # fused kernels are not counted
        net(image)
    return {
        "parameters (M)": sum(p.numel() for p in net.parameters()) / 1e6,
        "GFLOPs per image": counter.get_total_flops() / GIGA,
    }

"""How well a tokenizer gives images back, how much of its codebook it uses, what it costs.

The pairs land in a folder, so that distances between them (rFD, PSNR, SSIM, LPIPS) are those of any
two sets of images: `sampling/evaluate.py FOLDER/reconstructions.npz SUITE --against
FOLDER/originals.npz`. Letters: N images, K codes.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from genvis.config import config, dump
from genvis.console import progress
from genvis.data import DATASETS
from genvis.data.latents import check_images
from genvis.evaluation.records import Record, append, stamped
from genvis.evaluation.similarity import likeness
from genvis.evaluation.svm import PixelSVM
from genvis.images import from_uint8, save_grid, save_npz, to_uint8
from genvis.tokenizers.quantizers.quantized import entropy, histogram, usage
from genvis.types import Dataset, DatasetConfig, join

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
        if min(self.batch, self.shown, 1 if self.count is None else self.count) < 1:
            raise ValueError("count, batch and shown must be at least 1")

    def report(self, tokenizer: Any, folder: str | Path, subject: str) -> list[Record]:
        """Pairs, a picture and records in `folder`, of a `Tokenizer` or `ScaleTokenizer` in eval
        mode. ValueError if a judge is wanted of data without labels.
        """
        folder, held_out = Path(folder), self.data.build("val")
        check_images(held_out)
        if self.svm and held_out[[0]].cond.label is None:
            raise ValueError("svm needs labels, and these data have none")
        folder.mkdir(parents=True, exist_ok=True)
        count = len(held_out) if self.count is None else min(self.count, len(held_out))
        pairs = self._pairs(tokenizer, held_out, count)
        save_npz(folder / "originals.npz", pairs.originals, pairs.labels)
        save_npz(folder / "reconstructions.npz", pairs.made, pairs.labels)
        shown = min(self.shown, count)
        both = from_uint8(torch.cat([pairs.originals[:shown], pairs.made[:shown]]))
        save_grid(folder / "pairs.png", both, shown)
        values = {
            **quality(pairs.originals, pairs.made),
            **cost(tokenizer, held_out[[0]].x.to(_device(tokenizer))),
            "images per second": count / pairs.seconds,
        }
        if pairs.maps:
            values |= codes(pairs.maps, tokenizer.num_codes)
        if self.svm:
            values["SVM accuracy"] = self._judge(pairs)
        records = [
            stamped(metric=name, value=value, subject=subject, n=count, config=dump(self))
            for name, value in values.items()
        ]
        append(folder / "records.jsonl", *records)
        return records

    @torch.no_grad()
    def _pairs(self, tokenizer: Any, data: Dataset, count: int) -> "Pairs":
        device, seconds, parts = _device(tokenizer), 0.0, []
        chunks = [range(i, min(i + self.batch, count)) for i in range(0, count, self.batch)]
        reconstruct(tokenizer, data[chunks[0]].x.to(device))  # warm
        for chunk in progress(chunks, "reconstruct"):
            batch = data[chunk]
            start, images = time.monotonic(), batch.x.to(device)
            made = reconstruct(tokenizer, images).cpu()  # waits for an accelerator
            seconds += time.monotonic() - start
            maps = tokenizer.token_maps(images) if hasattr(tokenizer, "token_maps") else {}
            parts.append(Pairs(to_uint8(batch.x), to_uint8(made), batch.cond.label, maps, seconds))
        return replace(join(parts), seconds=seconds)

    def _judge(self, pairs: "Pairs") -> float:
        train = self.data.build("train")
        real = train[range(len(train))]
        assert real.cond.label is not None
        assert pairs.labels is not None
        judge = PixelSVM.fit(real.x, real.cond.label)
        return judge.accuracy(from_uint8(pairs.made), pairs.labels)


@dataclass(frozen=True)
class Pairs:
    """originals and made (N, 3, H, W) uint8; labels (N,), if the data have any; maps: the tokens
    (N, ...) of every map of a discrete tokenizer; seconds from originals to made.
    """

    originals: Tensor
    made: Tensor
    labels: Tensor | None
    maps: dict[str, Tensor]
    seconds: float


def reconstruct(tokenizer: Any, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] through the bottleneck, without sampling, and back."""
    if hasattr(tokenizer, "accumulate"):  # of token pyramids
        made: Tensor = tokenizer(images).images
    else:
        made = tokenizer.decode(tokenizer.encode(images).mode())
    return made.float().clamp(-1, 1)


def quality(originals: Tensor, made: Tensor) -> dict[str, float]:
    """PSNR, SSIM from 11 pixels on, PSNR's 5th percentile; both (N, 3, H, W) uint8."""
    found = likeness(made, originals)
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


def cost(tokenizer: Any, image: Tensor) -> dict[str, float]:
    """Parameters in millions, and billions of operations (two a multiply-add) for one image, there
    and back.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # fused kernels are not counted
        reconstruct(tokenizer, image)
    return {
        "parameters (M)": sum(p.numel() for p in tokenizer.parameters()) / 1e6,
        "GFLOPs per image": counter.get_total_flops() / GIGA,
    }


def _device(tokenizer: Any) -> torch.device:
    return next(tokenizer.parameters(), torch.zeros(())).device

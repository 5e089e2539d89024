"""Images of any sizes as one batch of patches, padded to the longest.

Source: the ViTok-v2 release, after Dehghani et al. 2023, "Patch n' Pack: NaViT". Inside a patch the
order is channel, row, column; images are padded with zeros (grey) at the right and the bottom.
Letters: B images, N tokens, C channels, H W size of an image, p patch side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class Patches:
    """values (B, N, D), patches or what became of them; real (B, N) bool: not padding; rows and
    columns (B, N) int64, 0 at padding; sizes (B, 2) int64: H and W in pixels.
    """

    values: Tensor
    real: Tensor
    rows: Tensor
    columns: Tensor
    sizes: Tensor


def patchify(images: Sequence[Tensor], patch: int, tokens: int | None = None) -> Patches:
    """Images, each (C, H, W) -> C p p values a token, padded to `tokens` (default: the longest)."""
    padded = [F.pad(x, (0, -x.shape[2] % patch, 0, -x.shape[1] % patch)) for x in images]
    grids = [(x.shape[1] // patch, x.shape[2] // patch) for x in padded]
    longest = max(h * w for h, w in grids)
    n = longest if tokens is None else tokens
    if longest > n or not all(h and w for h, w in grids):
        raise ValueError(f"images of {grids} patches (rows, columns) do not fit 1 to {n} tokens")
    flat = [rearrange(x, "c (h p) (w q) -> (h w) (c p q)", p=patch, q=patch) for x in padded]
    numbers = [torch.arange(h * w, device=images[0].device) for h, w in grids]
    pairs = list(zip(numbers, grids, strict=True))
    return Patches(
        values=torch.stack([F.pad(x, (0, 0, 0, n - len(x))) for x in flat]),
        real=torch.stack(
            [F.pad(torch.ones_like(i, dtype=torch.bool), (0, n - len(i))) for i in numbers]
        ),
        rows=torch.stack([F.pad(i // w, (0, n - len(i))) for i, (_, w) in pairs]),
        columns=torch.stack([F.pad(i % w, (0, n - len(i))) for i, (_, w) in pairs]),
        sizes=torch.tensor([x.shape[1:] for x in images], device=images[0].device),
    )


def unpatchify(patches: Patches, patch: int) -> list[Tensor]:
    """The images (C, H, W) again, cropped to their sizes."""
    images = []
    for values, (height, width) in zip(patches.values, patches.sizes.tolist(), strict=True):
        h, w = -(-height // patch), -(-width // patch)
        image = rearrange(
            values[: h * w], "(h w) (c p q) -> c (h p) (w q)", h=h, w=w, p=patch, q=patch
        )
        images.append(image[:, :height, :width])
    return images

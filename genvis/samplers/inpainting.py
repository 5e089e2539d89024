"""In-painting, out-painting and class editing with next-scale models: part of every map is given.

Source: Tian et al. 2024, "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale
Prediction", section 5.3, and released code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.types import ScaleTokenizer


@torch.no_grad()
def known_tokens(tokenizer: ScaleTokenizer, images: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """What `Cond.known` holds so that parts of images (B, 3, H, W) stay: their tokens (B, L), and
    which of them are kept (B, L).

    keep (B, H, W): 1 (or True) where the image stays, 0 where it is made anew. A token is kept
    where keep, resized to its map, is above a half; the map of 1 x 1 always is.
    """
    if keep.shape != images[:, 0].shape:
        wanted = tuple(images[:, 0].shape)
        raise ValueError(f"keep must be one value a pixel, {wanted}, got {tuple(keep.shape)}")
    values = torch.cat(tokenizer.encode(images).tokens, dim=1)
    share = keep[:, None].to(images)
    masks = [
        (F.interpolate(share, (p, p), mode="bilinear") > 0.5).flatten(1) | (p == 1)
        for p in tokenizer.scales
    ]
    return values, torch.cat(masks, dim=1)

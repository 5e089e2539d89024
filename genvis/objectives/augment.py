"""Small changes of images that leave what they show: shifts and pixel noise.

Letters: B images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.random import Keys


def shaken(images: Tensor, keys: Keys, shift: float, noise: float) -> Tensor:
    """Images (B, 3, H, W), each moved by up to `shift` pixels along both axes, uniform and
    sub-pixel, its border repeated, and with Gaussian noise of a deviation up to `noise`, uniform.
    """
    b, side = len(images), images.shape[-1]
    offset = (2 * keys.fold("shift").uniform((2,), images.device) - 1) * shift * 2 / side
    theta = torch.eye(2, 3, device=images.device).expand(b, 2, 3).clone()
    theta[:, :, 2] = offset.float()
    where = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, where, padding_mode="border", align_corners=False)
    strength = noise * keys.fold("strength").uniform((1, 1, 1), images.device).float()
    return moved + strength * keys.fold("pixels").normal((1, *images.shape[2:]), images.device)

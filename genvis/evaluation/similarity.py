"""SSIM between paired images: likeness of local means, contrasts and patterns.

(2 m n + C1) (2 s_xy + C2) / ((m^2 + n^2 + C1) (s_x^2 + s_y^2 + C2)) with C1 = (0.01 L)^2 and
C2 = (0.03 L)^2, data range L = 255; moments under an 11 x 11 Gaussian window of sigma 1.5 that lies
wholly inside the image; the mean over positions and colours (not luminance alone) is the value.
Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural
similarity", section III.
Letters: N images, H W size, m n local means, s local (co)variances.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from genvis.evaluation.fidelity import Likeness, check_pairs, psnr

WINDOW, SIGMA, RANGE = 11, 1.5, 255
C1, C2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2


def likeness(images: Tensor, references: Tensor) -> dict[str, Likeness]:
    """psnr and, from 11 x 11 pixels on, ssim of each pair; both (N, 3, H, W) uint8."""
    found = {"psnr": psnr(images, references)}
    if min(images.shape[2:]) >= WINDOW:
        found["ssim"] = ssim(images, references)
    return found


def ssim(images: Tensor, references: Tensor, chunk: int = 64) -> Likeness:
    """Per pair, in [-1, 1]; both (N, 3, H, W) uint8 with H, W >= 11, same keys a row; float64,
    `chunk` images at a time. ValueError for other types or shapes.
    """
    check_pairs(images, references, "ssim")
    if min(images.shape[2:]) < WINDOW:
        raise ValueError(
            f"ssim needs images of at least {WINDOW} x {WINDOW} pixels, got "
            f"{images.shape[2]} x {images.shape[3]}"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 image, got {chunk}")
    pairs = zip(images.split(chunk), references.split(chunk), strict=True)
    maps = (agreement(x.double(), y.double(), _blur) for x, y in pairs)
    return Likeness(torch.cat([one.mean((1, 2, 3)) for one in maps]))


def agreement(
    x: Tensor, y: Tensor, mean: Callable[[Tensor], Tensor], correction: float = 1.0
) -> Tensor:
    """SSIM at every position of the window that `mean` averages over, (B, C, H', W') as it gives;
    x and y (B, C, H, W) in 0..255. correction: a factor on the (co)variances.
    """
    m, n = mean(x), mean(y)
    var_x, var_y = correction * (mean(x * x) - m * m), correction * (mean(y * y) - n * n)
    covariance = correction * (mean(x * y) - m * n)
    alike = (2 * m * n + C1) * (2 * covariance + C2)
    return alike / ((m * m + n * n + C1) * (var_x + var_y + C2))


def _blur(x: Tensor) -> Tensor:
    offset = torch.arange(WINDOW, device=x.device).double() - WINDOW // 2
    weight = torch.softmax(-offset.square() / (2 * SIGMA**2), 0)
    planes = rearrange(x, "b c h w -> (b c) 1 h w")
    planes = F.conv2d(planes, weight.view(1, 1, -1, 1))
    planes = F.conv2d(planes, weight.view(1, 1, 1, -1))
    return rearrange(planes, "(b c) 1 h w -> b c h w", b=len(x))

"""Tiles give what the whole gives where the tokenizer looks no further than their overlap."""

import pytest
import torch
from torch import Tensor, nn

from genvis.random import HashKeys
from genvis.tokenizers import TOKENIZERS
from genvis.tokenizers.tiled import tiled, tiled_encode
from genvis.types import Moments

TOWERS = {
    "encoder": {"width": 24, "depth": 1, "heads": 2},
    "decoder": {"width": 36, "depth": 1, "heads": 3},
}
VITOK = {"name": "vitok", "size": 32, "patch": 4, "code": 3, "positions": "sincos2d", **TOWERS}


class Conv(nn.Module):
    """Two pixels a side of a latent cell; a latent sees one cell, an image two to either side."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 6, stride=2, padding=2)
        self.up = nn.ConvTranspose2d(2, 3, 6, stride=2, padding=2)

    def encode(self, images: Tensor) -> Moments:
        mean, std = self.down(images).chunk(2, dim=1)
        return Moments(mean, std.exp())

    def decode(self, z: Tensor) -> Tensor:
        return self.up(z)


def conv() -> Conv:
    torch.manual_seed(0)
    return Conv().eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(20, 27), (8, 30), (9, 9), (5, 6), (12, 8)])
def test_tiles_of_a_local_tokenizer_give_the_whole(size: tuple[int, int]) -> None:
    z = HashKeys.of(0, range(2)).normal((2, *size))
    net, sizes = conv(), []

    def decode(part: Tensor) -> Tensor:
        sizes.append(part.shape[2:])
        return net.decode(part)

    out = tiled(decode, z, tile=16, overlap=8, write=2)
    torch.testing.assert_close(out, net.decode(z), atol=1e-5, rtol=1e-5)
    assert len({tuple(s) for s in sizes}) == 1
    assert max(max(s) for s in sizes) <= 16


def test_encoding_in_tiles_blends_mean_and_std() -> None:
    images = HashKeys.of(0, range(2)).normal((3, 40, 56))
    net = conv()
    whole, parts = net.encode(images), tiled_encode(net, images, factor=2, tile=16, overlap=8)
    torch.testing.assert_close(parts.mean, whole.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts.std, whole.std, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("overlap", [0, 4])
def test_pixels_in_tiles_are_the_pixels(overlap: int) -> None:
    made = TOKENIZERS.build(
        {"name": "tiled", "tokenizer": "pixels", "factor": 1, "tile": 8, "overlap": overlap}
    ).build()
    x = HashKeys.of(0, range(2)).uniform((3, 19, 33)).float() * 2 - 1
    torch.testing.assert_close(made.encode(x).mean, x)
    assert made.encode(x).std is None
    torch.testing.assert_close(made.decode(x), x)


def test_a_transformer_of_one_size_does_larger_maps() -> None:
    fields = {"tokenizer": VITOK, "factor": 4, "tile": 8, "overlap": 4}
    net = TOKENIZERS.build({"name": "tiled", **fields}).build().eval()
    x = HashKeys.of(0, range(1)).uniform((3, 32, 48)).float() * 2 - 1
    moments = net.encode(x)
    assert moments.mean.shape == (1, 3, 8, 12)
    decoded = net.decode(moments.mode())
    assert decoded.shape == x.shape
    alone = net.tokenizer.decode(moments.mode()[..., :8])
    torch.testing.assert_close(decoded[..., :20], alone[..., :20])  # before the blend
    with pytest.raises(ValueError, match="sides divisible by 4"):
        net.encode(x[..., :45])


@pytest.mark.parametrize("overlap", [6, 8, -4])
def test_overlaps_that_cannot_be_blended_are_refused(overlap: int) -> None:
    data = {"name": "tiled", "tokenizer": "pixels", "factor": 1, "tile": 12, "overlap": overlap}
    with pytest.raises(ValueError, match="divisible by 4 and at most half a tile"):
        TOKENIZERS.build(data)

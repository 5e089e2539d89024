"""A tokenizer of ours where diffusers expects an `AutoencoderKL`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from genvis.integrations.diffusers_adapter import TokenizerForDiffusers
from genvis.random import HashKeys
from genvis.tokenizers import TOKENIZERS
from genvis.tokenizers.tiled import tiled_encode
from genvis.tokenizers.vitok import ViTok, ViTokConfig

pytest.importorskip("diffusers")

TOWERS = {
    "encoder": {"width": 24, "depth": 1, "heads": 2},
    "decoder": {"width": 36, "depth": 1, "heads": 3},
}
VITOK = {"name": "vitok", "size": 32, "patch": 4, "code": 3, "positions": "none", **TOWERS}


def view(tokenizer: Any, factor: int = 4) -> TokenizerForDiffusers:
    return TokenizerForDiffusers(tokenizer, latent_channels=3, factor=factor)


def picture(rows: int = 2) -> Tensor:
    return HashKeys.of(1, range(rows)).uniform((3, 32, 32)).float() * 2 - 1


@pytest.fixture(scope="module")
def vitok() -> ViTok:
    torch.manual_seed(0)
    made = TOKENIZERS.build(VITOK)
    assert isinstance(made, ViTokConfig)
    return made.build().eval().requires_grad_(False)


def test_the_view_is_what_users_of_diffusers_know(vitok: ViTok) -> None:
    vae, x = view(vitok), picture()
    posterior = vitok.posterior(x)
    found = vae.encode(x).latent_dist
    noise = torch.randn(found.mean.shape, generator=torch.Generator().manual_seed(0))
    z = found.sample(torch.Generator().manual_seed(0))
    for seen, wanted in (
        (z, posterior.mean + posterior.std * noise),
        (found.mode(), posterior.mean),
        (found.logvar, posterior.logvar),
        (found.kl(), posterior.kl()),
        (found.nll(z), posterior.nll(z)),
        (vae.encode(x, return_dict=False)[0].mean, posterior.mean),
    ):
        torch.testing.assert_close(seen, wanted)
    assert torch.equal(vae.decode(z).sample, vitok.decode(z))
    assert torch.equal(vae.decode(z, return_dict=False)[0], vitok.decode(z))
    assert torch.equal(vae(x).sample, vitok.decode(posterior.mean))
    drawn = vae(x, sample_posterior=True, generator=torch.Generator().manual_seed(0)).sample
    torch.testing.assert_close(drawn, vitok.decode(z))
    assert 2 ** (len(vae.config.block_out_channels) - 1) == 4
    assert (vae.config.scaling_factor, vae.config["latent_channels"]) == (1, 3)
    assert vae.dtype == torch.float32


def test_slices_give_the_same(vitok: ViTok) -> None:
    vae, x = view(vitok), picture(3)
    whole = vae.encode(x).latent_dist.mean
    vae.enable_slicing()
    torch.testing.assert_close(vae.encode(x).latent_dist.mean, whole)
    torch.testing.assert_close(vae.decode(whole).sample, vitok.decode(whole))
    vae.disable_slicing()
    assert torch.equal(vae.encode(x).latent_dist.mean, whole)


def test_tiles_are_those_of_the_tokenizers(vitok: ViTok) -> None:
    vae, x = view(vitok), picture()
    vae.enable_tiling(tile=4, overlap=0)
    tiles, found = tiled_encode(vitok, x, 4, 4, 0), vae.encode(x).latent_dist
    assert tiles.std is not None
    torch.testing.assert_close(found.mean, tiles.mean)
    torch.testing.assert_close(found.std, tiles.std)
    apart = vitok.decode(tiles.mean[..., :4, :4])
    torch.testing.assert_close(vae.decode(tiles.mean).sample[..., :16, :16], apart)
    vae.disable_tiling()
    assert torch.equal(vae.encode(x).latent_dist.mean, vitok.encode(x).mean)


def test_a_deterministic_tokenizer_has_no_spread() -> None:
    made = TOKENIZERS.build({**VITOK, "variational": False}).build()
    dist = view(made).encode(picture()).latent_dist
    assert torch.equal(dist.sample(), dist.mean)
    assert torch.equal(dist.kl(), torch.zeros(1))
    with pytest.raises(ValueError, match="factor must be a power of 2"):
        view(made, factor=6)

"""One battery over every entry of the table: a new tokenizer is tested by being listed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.checkpoint import from_pretrained, save_pretrained
from genvis.random import HashKeys
from genvis.tokenizers import TOKENIZERS
from genvis.types import Moments, Pyramid, take

NETS = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
TOWERS = {
    "encoder": {"width": 24, "depth": 1, "heads": 2},
    "decoder": {"width": 36, "depth": 2, "heads": 3},
}
SMALL: dict[str, dict[str, Any]] = {  # what makes a tokenizer of each class small
    "PixelsConfig": {},
    "ViTokConfig": {"size": [8, 16], "frames": 1, "patch": 4, "tubelet": 1, "code": 3, **TOWERS},
    "ViTokV2Config": {"size": [8, 16], "patch": 4, "code": 3, **TOWERS},
    "ScaledConfig": {
        "tokenizer": {"name": "vitok", "size": [8, 16], "patch": 4, "code": 3, **TOWERS},
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 1.0, 2.0],
    },
    "TiledConfig": {"tokenizer": {"name": "vitok_v2", "size": 8, "patch": 4, "code": 3, **TOWERS}},
    "MultiScaleVQConfig": {
        "nets": NETS,
        "quantizer": {"codes": 8, "width": 4, "scales": [1, 2, 4], "phi": 2},
    },
    "DiscreteConfig": {"nets": NETS, "channels": 8, "quantizer": {"name": "vq", "codes": 8}},
}
FROM_FILES = {"PretrainedConfig", "DiffusersTokenizerConfig"}  # their weights are not made here
VARIANTS: dict[str, dict[str, Any]] = {  # other parts of a class, tested by the same battery
    "pixels_grey": {"name": "pixels", "channels": 1, "mean": -0.3, "std": 0.7},
    "vitok_grey": {"name": "vitok", "channels": 1, "positions": "sincos1d", "rope": "none"},
    "vitok_mixed": {"name": "vitok", "rope": "mixed", "positions": "decoder", "gate": "silu"},
    "vitok_2d": {"name": "vitok", "rope": "2d", "positions": "sincos2d", "variational": False},
    "vitok_1d_code": {"name": "vitok", "tokens": 5, "lengths": [1, 2], "positions": "learned"},
    "vitok_video_code": {"name": "vitok", "frames": 4, "tokens": 5, "positions": "sincos3d"},
    "vitok_video": {"name": "vitok", "frames": 4, "tubelet": 2, "positions": "sincos3d"},
    "vitok_video_3d": {"name": "vitok", "frames": 4, "tubelet": 2, "rope": "3d"},
    "tiled": {"name": "tiled", "factor": 4, "tile": 2, "overlap": 0},
    "discrete_fsq": {"name": "discrete", "quantizer": {"name": "fsq", "levels": [4, 3]}},
}


def class_of(name: str) -> str:
    chosen = TOKENIZERS.resolve(name)
    return chosen.__name__ if isinstance(chosen, type) else type(chosen).__name__


CLASSES = [
    name
    for name in TOKENIZERS
    if isinstance(TOKENIZERS.resolve(name), type)
    and class_of(name) not in FROM_FILES
    and name not in VARIANTS
]
CASES = [*CLASSES, *VARIANTS]


def build(name: str) -> nn.Module:
    """A small tokenizer with noise on every weight, so that no initial value hides anything."""
    chosen = VARIANTS.get(name, {"name": name})
    torch.manual_seed(0)
    net = TOKENIZERS.build({**SMALL[class_of(chosen["name"])], **chosen}).build()
    for parameter in net.parameters():
        parameter.data += nn.init.normal_(torch.empty_like(parameter), std=0.1)
    return net.eval()


TRAINABLE = [name for name in CASES if "forward" in vars(type(build(name)))]
RANDOM = [name for name in TRAINABLE if getattr(build(name).config, "variational", False)]


def inputs(net: nn.Module, rows: int = 3, seed: int = 0) -> Tensor:
    """Images, not square where the tokenizer allows it, or videos."""
    width = 8 if hasattr(net, "scales") else 16
    frames = getattr(net.config, "frames", 1)
    keys = HashKeys.of(seed, range(rows))
    images = keys.uniform((3, *([frames] if frames > 1 else []), 8, width)).float() * 2 - 1
    return images.mean(1, keepdim=True).expand_as(images) if grey(net) else images


def grey(net: nn.Module) -> bool:
    return getattr(net.config, "channels", 3) == 1


def latents(net: nn.Module, images: Tensor) -> Tensor:
    """What `decode` takes."""
    code = net.encode(images)
    if isinstance(code, Moments):
        return code.mode()
    assert isinstance(code, Pyramid)
    f_hat = net.blank(len(images))
    for scale, tokens in enumerate(code.tokens):
        f_hat = net.accumulate(f_hat, tokens, scale)
    return f_hat


def test_every_class_is_in_the_battery() -> None:
    assert {class_of(name) for name in TOKENIZERS} == SMALL.keys() | FROM_FILES


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [1, 3])
def test_decoding_an_encoding_gives_images_of_the_same_shape(name: str, rows: int) -> None:
    net = build(name)
    images = inputs(net, rows)
    code = net.encode(images)
    decoded = net.decode(latents(net, images))
    assert decoded.shape == images.shape
    assert decoded.min() >= -1
    assert decoded.max() <= 1
    if isinstance(code, Moments):
        assert tuple(code.mean.shape[1:]) == getattr(net.config, "shape", code.mean.shape[1:])
        assert code.std is None or (code.std.shape == code.mean.shape and code.std.min() > 0)


@pytest.mark.parametrize("name", CASES)
def test_rows_do_not_see_each_other(name: str) -> None:
    net = build(name)
    images = inputs(net)
    whole = net.encode(images)
    alone = [net.encode(images[i : i + 1]) for i in range(3)]
    z = latents(net, images)
    for i, part in enumerate(alone):
        torch.testing.assert_close(take(whole, slice(i, i + 1)), part, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            net.decode(z)[i], net.decode(z[i : i + 1])[0], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", CASES)
def test_save_and_load_are_exact(name: str, tmp_path: Path) -> None:
    net = build(name)
    save_pretrained(net, tmp_path / "model", TOKENIZERS)
    loaded = from_pretrained(tmp_path / "model", TOKENIZERS)
    assert loaded.config == net.config
    images = inputs(net)
    assert torch.equal(latents(loaded, images), latents(net, images))
    assert torch.equal(loaded.decode(latents(net, images)), net.decode(latents(net, images)))


@pytest.mark.parametrize("name", CASES)
def test_the_image_matters(name: str) -> None:
    net = build(name)
    one, other = (latents(net, inputs(net, 1, seed)) for seed in (0, 1))
    assert not torch.allclose(one, other)
    assert not torch.allclose(net.decode(one), net.decode(other))


@pytest.mark.parametrize("name", TRAINABLE)
def test_gradients_reach_every_weight(name: str) -> None:
    net = build(name).train()
    made = net(inputs(net), HashKeys.of(5, range(3)))
    (made.images.square().mean() + made.penalty.mean()).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_reconstruction_without_keys_is_what_decoding_gives(name: str) -> None:
    net = build(name)
    images = inputs(net)
    made = net(images)
    assert made.penalty.shape == (3,)
    expected = net.decode(latents(net, images))
    torch.testing.assert_close(made.images.clamp(-1, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RANDOM)
def test_keys_decide_what_is_sampled(name: str) -> None:
    net = build(name)
    images = inputs(net)
    one, same, other = (net(images, HashKeys.of(seed, range(3))).images for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    first = net(images[:1], HashKeys.of(1, range(1))).images
    torch.testing.assert_close(first, one[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRAINABLE)
def test_training_the_decoder_leaves_every_latent_as_it_is(name: str) -> None:
    net = build(name)
    images = inputs(net)
    before, decoded = latents(net, images), net(images).images
    parameters = list(net.decoder_parameters())
    assert parameters
    for parameter in parameters:
        parameter.data += 0.1
    assert torch.equal(latents(net, images), before)
    assert not torch.allclose(net(images).images, decoded)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vitok", "vitok_v2"])
def test_compiled_equals_eager(name: str) -> None:
    net = build(name)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    images = inputs(net)
    torch.testing.assert_close(compiled(images).images, net(images).images, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("pixels")])
def test_wrong_images_are_named(name: str) -> None:
    net = build(name)
    images = inputs(net)
    with pytest.raises(ValueError, match=r"images|videos"):
        net.encode(images[:, :2])
    with pytest.raises(ValueError, match=r"divi|images"):
        net.encode(images[..., :7])

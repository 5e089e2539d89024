"""The staged objective: targets at every resolution, coefficients, wrapped networks."""

import pytest
import torch
from torch import Tensor, nn

from genvis.config import build
from genvis.objectives.denoising import Denoising
from genvis.objectives.stages import StagedDenoising, all_stages, shrink, stage_errors
from genvis.random import HashKeys
from genvis.samplers.generator import GeneratorConfig
from genvis.types import Batch, Cond, Loss

COARSE = {"width": 16, "hidden": 24, "depth": 2, "heads": 2, "patch": 2}
FINE = {"width": 8, "hidden": 16, "depth": 2, "kernel": 3}
BRICK = {"patch": 2, "depth": 1, "heads": 2}
BACKBONES = {
    "dimr": {"name": "dimr", "stages": [COARSE, FINE]},
    "lego": {"name": "lego", "width": 16, "bricks": [{"side": 4, **BRICK}, {"side": 8, **BRICK}]},
    "dit": {"name": "dit", "width": 16, "depth": 1, "heads": 2},
}


def generator(name: str, prediction: str = "velocity") -> object:
    fields = {
        "backbone": {"size": 8, "channels": 1, "num_classes": 3, **BACKBONES[name]},
        "process": {"name": "linear"},
        "prediction": {"name": prediction},
        "tokenizer": {"name": "pixels", "channels": 1},
    }
    made = build(GeneratorConfig, fields).build()
    torch.manual_seed(0)
    for parameter in made.net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return made


def batch() -> Batch:
    images = HashKeys.of(5, range(4)).normal((3, 8, 8)).clamp(-1, 1)
    return Batch(images, Cond(label=torch.tensor([0, 1, 2, 0])))


def loss(made: object, net: nn.Module | None = None, **fields: object) -> Loss:
    """Of the staged objective, or of plain denoising with plain=True."""
    objective: type = Denoising if fields.pop("plain", False) else StagedDenoising
    bound = build(objective, fields).build(made)
    return bound(net or made.net, batch(), HashKeys.of(0, range(4)))


def test_white_noise_stays_white_when_it_shrinks() -> None:
    noise = HashKeys.of(0, range(500)).normal((2, 8, 16))
    for width in (16, 8, 4):
        small = shrink(noise, width)
        assert small.shape == (500, 2, width // 2, width)
        assert small.var().item() == pytest.approx(1, abs=6 / small.numel() ** 0.5)
        assert (small[..., 1:] * small[..., :-1]).mean().abs() < 4 / small.numel() ** 0.5
    assert torch.equal(shrink(torch.ones(1, 1, 4, 4), 2), torch.full((1, 1, 2, 2), 2.0))


def test_all_weight_on_the_last_stage_is_plain_denoising() -> None:
    made = generator("dimr")
    staged, plain = loss(made, coefficients=[0.0, 1.0]), loss(made, plain=True)
    torch.testing.assert_close(staged.per_sample, plain.per_sample)


def test_coefficients_add_the_stages_and_null_is_their_mean() -> None:
    made = generator("dimr")
    first, last, both, mean = (
        loss(made, coefficients=c).per_sample for c in ([1.0, 0.0], [0.0, 1.0], [0.25, 1.0], None)
    )
    torch.testing.assert_close(both, 0.25 * first + last)
    torch.testing.assert_close(mean, (first + last) / 2)


def test_bricks_are_all_compared_with_the_whole_target() -> None:
    wanted, outputs = torch.randn(2, 1, 8, 8), [torch.randn(2, 1, 8, 8) for _ in range(3)]
    errors = [(out - wanted).square().mean((1, 2, 3)) for out in outputs]
    torch.testing.assert_close(stage_errors(outputs, wanted), torch.stack(errors, dim=1))


@pytest.mark.parametrize("name", ["dimr", "lego"])
def test_the_loss_trains_every_weight(name: str) -> None:
    made = generator(name)
    loss(made).per_sample.mean().backward()
    assert not [n for n, p in made.net.named_parameters() if p.grad is None]


def test_misfits_are_named() -> None:
    with pytest.raises(ValueError, match="DiT has none: use denoising"):
        loss(generator("dit"))
    with pytest.raises(ValueError, match="each of the network's 2 stages, got 3"):
        loss(generator("dimr"), coefficients=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="coefficients must be at least 0"):
        build(StagedDenoising, {"coefficients": [-1.0, 1.0]})


class Wrapper(nn.Module):
    """As data-parallel training wraps a network: its own call must not be passed by."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *given: object) -> object:
        self.calls += 1
        return self.module(*given)


@pytest.mark.parametrize("patched", [False, True])
def test_a_wrapped_network_is_called_through_its_wrapper(patched: bool) -> None:
    made = generator("dimr")
    net = made.net
    if patched:  # accelerate puts a forward on the instance
        net.forward = net.forward
    before = dict(vars(net))
    wrapper = Wrapper(net)
    staged, plain = loss(made, wrapper), loss(made)
    torch.testing.assert_close(staged.per_sample, plain.per_sample)
    assert wrapper.calls == 1
    assert vars(net) == before
    x, t, cond = torch.zeros(1, 1, 8, 8), torch.zeros(1), Cond(label=torch.tensor([0]))
    assert isinstance(wrapper(x, t, cond), Tensor)
    assert len(all_stages(wrapper, x, t, cond)) == 2

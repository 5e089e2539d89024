"""Time-dependent norms: what a fresh one is, and what time may do to a trained one."""

import re

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones import BACKBONES
from genvis.config import ConfigError
from genvis.nn.norms import Norms
from genvis.nn.time_norms import TimeLayerNorm, TimeParameter, TimeRMSNorm
from genvis.types import Cond

TAU = torch.tensor([-1.0, -0.2, 1.0])


def tokens(*shape: int) -> Tensor:
    return torch.randn(3, *shape, 6, generator=torch.Generator().manual_seed(0))


def trained(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("shape", [(), (5,), (2, 4)])
def test_a_fresh_norm_is_a_plain_one_at_all_times(shape: tuple[int, ...]) -> None:
    x = tokens(*shape)
    torch.testing.assert_close(TimeLayerNorm(6)(x, TAU), nn.LayerNorm(6)(x))
    for norm in (TimeRMSNorm(6), TimeRMSNorm(6, bias=True)):
        torch.testing.assert_close(norm(x, TAU), nn.RMSNorm(6, eps=0)(x))


def test_values_move_monotonically_between_their_two_ends() -> None:
    parameter = trained(TimeParameter(50, 0.0))
    nn.init.uniform_(parameter.nodecay_weight, -0.9, 1)  # slopes w + 1 above 0
    path = parameter(torch.linspace(-1, 1, 20), torch.zeros(20, 50))  # (20, 50)
    ends = torch.stack([parameter.param0, parameter.param1])
    assert (path >= ends.amin(0)).all()
    assert (path <= ends.amax(0)).all()
    towards = (parameter.param0 - parameter.param1).sign()
    assert (path.diff(dim=0) * towards > 0).all()


@pytest.mark.parametrize(
    "norm", [TimeLayerNorm(6), TimeRMSNorm(6), TimeRMSNorm(6, bias=True)], ids=["layer", "rms", "b"]
)
def test_every_row_has_its_own_time_wherever_its_places_are(norm: nn.Module) -> None:
    norm, x = trained(norm), tokens(2, 4)
    out = norm(x, TAU)
    torch.testing.assert_close(out.flatten(1, 2), norm(x.flatten(1, 2), TAU))
    for row in range(3):
        torch.testing.assert_close(out[row : row + 1], norm(x[row : row + 1], TAU[row : row + 1]))
    assert not torch.allclose(out, norm(x, TAU.roll(1)), atol=1e-2)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in norm.parameters())


def test_a_row_of_zeros_has_finite_gradients() -> None:
    x = torch.zeros(3, 2, 6, requires_grad=True)
    TimeRMSNorm(6)(x, TAU).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_reduced_precision_stays_what_it_is_and_time_is_not_rounded() -> None:
    norm = trained(TimeRMSNorm(6))
    x = tokens(2).bfloat16()
    assert norm.bfloat16()(x, TAU).dtype == torch.bfloat16
    near = torch.tensor([0.5, 0.5 + 2**-10])  # equal in bfloat16
    with torch.no_grad():
        norm.float()
        norm.scale.nodecay_weight.fill_(1e3)
        norm.scale.nodecay_bias.fill_(-500.5)
        norm.bfloat16()
    values = norm.scale(near, torch.zeros(2, 6))
    assert not torch.equal(values[0], values[1])


NETS = {
    "dit": {"patch": 2, "width": 16, "depth": 2, "heads": 2},
    "uvit": {"patch": 2, "width": 16, "depth": 2, "heads": 2},
    "lego": {"width": 16, "bricks": [{"side": 4, "patch": 2, "depth": 2, "heads": 2}]},
    "dim": {"patch": 2, "width": 16, "depth": 2, "heads": 2, "head": 8},
}


@pytest.mark.parametrize("place", ["pre", "scaled", "peri", "mix"])
@pytest.mark.parametrize("name", NETS)
def test_every_transformer_takes_norms_that_move_with_time(name: str, place: str) -> None:
    """While they are fresh nothing changes; all but those of Mix-LN's first layers learn."""
    fields = {"name": name, "size": 8, "channels": 1, "num_classes": 3, **NETS[name]}
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 700.0])
    cond = Cond(label=torch.tensor([0, 2]))
    outputs = []
    for time in (None, [0.0, 1000.0]):
        norms = {"time": time, "place": place}
        torch.manual_seed(0)
        net = BACKBONES.build({**fields, "norms": norms}).build().eval()
        state = net.state_dict()
        for key in sorted(key for key in state if not re.search(r"norm\d\.", key)):
            if state[key].is_floating_point():
                state[key] += 0.1 * torch.randn(state[key].shape)
        outputs.append(net(x, t, cond))
    torch.testing.assert_close(*outputs)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    net(x, t, cond).square().sum().backward()
    moving = [p.grad for key, p in net.named_parameters() if "nodecay" in key]
    assert moving
    assert all(grad is not None and grad.abs().sum() > 0 for grad in moving)


def test_time_at_the_ends_of_the_path() -> None:
    t = torch.tensor([0.0, 250.0, 1000.0])
    assert Norms(time=(0.0, 1000.0)).tau(t).tolist() == [-1, -0.5, 1]
    assert Norms().tau(t) is None
    with pytest.raises(ConfigError, match="two different network times"):
        Norms(time=(1.0, 1.0))

"""Where norms sit: each placement against its formula, and what it is for."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genvis.backbones.dit import DiTConfig
from genvis.nn.norms import Norms
from genvis.types import Cond

D, DEPTH = 8, 8


def norm(x: Tensor, kind: str) -> Tensor:
    return F.layer_norm(x, (D,), eps=1e-6) if kind == "layer" else F.rms_norm(x, (D,), eps=1e-6)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("layer", [0, 1, 2, 7])
@pytest.mark.parametrize("place", ["pre", "scaled", "peri", "mix"])
def test_a_placement_is_its_formula(place: str, layer: int, kind: str) -> None:
    torch.manual_seed(0)
    x, (shift, scale, gate) = 3 * torch.randn(2, 5, D) + 1, torch.randn(3, 2, D)
    inside, outside = Norms(kind=kind, place=place).residual(D, layer, DEPTH)
    branch = nn.Linear(D, D)

    def modulated(h: Tensor) -> Tensor:
        return h * (1 + scale[:, None]) + shift[:, None]

    def n(h: Tensor) -> Tensor:
        return norm(h, kind)

    expected = {
        "pre": lambda: x + gate[:, None] * branch(modulated(n(x))),
        "scaled": lambda: x + gate[:, None] * branch(modulated(n(x)) / (layer + 1) ** 0.5),
        "peri": lambda: x + gate[:, None] * n(branch(modulated(n(x)))),
        "mix": lambda: (
            n(x + gate[:, None] * branch(modulated(x)))
            if layer < 2  # the first quarter of eight
            else x + gate[:, None] * branch(modulated(n(x)))
        ),
    }
    found = outside(x, branch(inside(x, shift, scale)), gate)
    torch.testing.assert_close(found, expected[place](), rtol=1e-5, atol=1e-5)
    plain = outside(x, branch(inside(x)))  # without a condition
    assert plain.shape == x.shape


def growth(norms: Norms) -> float:
    """The stream's variance behind the last block over that behind the first, open gates."""
    torch.manual_seed(0)
    config = DiTConfig(
        size=8, channels=1, patch=2, width=32, depth=24, heads=4, num_classes=10, norms=norms
    )
    net = config.build()
    for block in net.blocks:  # adaLN-Zero's gates are closed at first
        nn.init.ones_(block.adaLN_modulation[1].bias[2 * 32 : 3 * 32])
        nn.init.ones_(block.adaLN_modulation[1].bias[5 * 32 :])
    seen: list[float] = []
    for block in net.blocks:
        block.register_forward_hook(lambda *call: seen.append(call[2].var().item()))
    with torch.no_grad():
        net(torch.randn(8, 1, 8, 8), torch.rand(8), Cond(label=torch.arange(8)))
    return seen[-1] / seen[0]


def test_scaled_norms_keep_the_variance_of_deep_streams_down() -> None:
    """Sun et al. 2025: from growth with every layer to growth with the logarithm of the depth."""
    assert growth(Norms(place="scaled")) < 0.5 * growth(Norms())

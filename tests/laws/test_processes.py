"""The 2x2 solve inverts every prediction on every path, and guidance is linear."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from genvis.processes.denoiser import Denoiser, corrupt, solve, target
from genvis.processes.guidance import Guided
from genvis.processes.linear import Linear
from genvis.processes.predictions import Clean, Noise, V, Velocity
from genvis.types import Cond, Estimate, Prediction, Process


@dataclass(frozen=True)
class Cosine:
    """A variance-preserving path that a user might bring: nothing in genvis knows it."""

    times: tuple[float, float] = (0.0, 1.0)

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.coeffs(t)
        return -sigma * torch.pi / 2, alpha * torch.pi / 2

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-log_snr / 2)) * 2 / torch.pi


@dataclass(frozen=True)
class VE:
    times: tuple[float, float] = (0.0, 8.0)

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-log_snr / 2)


PROCESSES = [Linear(), Cosine(), VE()]
PREDICTIONS = [Noise(), Clean(), V(), Velocity()]


@pytest.mark.parametrize(("process", "prediction"), list(product(PROCESSES, PREDICTIONS)))
def test_a_perfect_network_gives_back_x0_and_eps(process: Process, prediction: Prediction) -> None:
    torch.manual_seed(0)
    x0, eps = torch.randn(2, 16, 3, 4, 4, dtype=torch.float64)
    t = torch.linspace(0.02, 0.98, 16, dtype=torch.float64) * process.times[1]
    out = target(process, prediction, x0, eps, t)
    found = solve(process, prediction, corrupt(process, x0, eps, t), out, t)
    torch.testing.assert_close(found, (x0, eps), rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_rates_are_the_derivatives_of_coeffs(process: Process) -> None:
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    h = 1e-6
    for rate, after, before in zip(
        process.rates(t), process.coeffs(t + h), process.coeffs(t - h), strict=True
    ):
        torch.testing.assert_close(rate, (after - before) / (2 * h), rtol=0, atol=1e-8)


@pytest.mark.parametrize("process", PROCESSES)
def test_time_inverts_log_snr(process: Process) -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    alpha, sigma = process.coeffs(t)
    torch.testing.assert_close(process.time(2 * (alpha / sigma).log()), t, rtol=0, atol=1e-10)


class Echo(nn.Module):
    """Puts out twice the channels, depending on everything it is given; records the time it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.seen = t
        label = cond.label.float() if cond.drop is None else -torch.ones(len(x))
        return torch.cat([self.weight * x, x + label[:, None, None, None]], dim=1)


def test_learned_variance_is_split_off_and_time_is_scaled() -> None:
    x, cond = torch.randn(2, 4, 3, 3), Cond(label=torch.tensor([1, 2]))
    net = Echo()
    estimate = Denoiser(net, Linear(), Noise(time_scale=10.0, learned_variance=True))(
        x, torch.tensor(0.5, dtype=torch.float64), cond
    )
    assert torch.equal(estimate.eps, 0.5 * x)
    assert torch.equal(estimate.var, x + torch.tensor([1.0, 2.0])[:, None, None, None])
    assert torch.equal(net.seen, torch.tensor([5.0, 5.0]))


@dataclass(frozen=True)
class Constant:
    """An estimate that is its condition."""

    process: Process = PROCESSES[0]
    evaluations: int = 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        value = torch.zeros_like(x) if cond.drop is not None else torch.ones_like(x)
        return Estimate(value, 2 * value)


def test_guidance_extrapolates_and_counts_twice() -> None:
    x, t, cond = torch.zeros(2, 4, 2, 2), torch.tensor(0.5), Cond(label=torch.zeros(2).long())
    guided = Guided(Constant(), 3.0)
    assert guided.evaluations == 2
    assert torch.equal(guided(x, t, cond).x0, torch.full_like(x, 3.0))
    assert torch.equal(guided(x, t, cond).eps, torch.full_like(x, 6.0))
    some = Guided(Constant(), 3.0, channels=3)(x, t, cond).x0
    assert torch.equal(some[:, :3], torch.full_like(some[:, :3], 3.0))
    assert torch.equal(some[:, 3:], torch.ones_like(some[:, 3:]))
    assert torch.equal(Guided(Constant(), 1.0)(x, t, cond).x0, Constant()(x, t, cond).x0)


def test_the_negative_condition_replaces_the_dropped_one() -> None:
    negative = Cond(label=torch.tensor([3]))
    assert Cond(label=torch.tensor([1]), negative=negative).dropped() is negative

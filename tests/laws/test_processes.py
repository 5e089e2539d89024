"""The 2x2 solve inverts every prediction on every path, and guidance is linear."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from genvis.objectives.weights import Constant, InTermsOf, MinSNR
from genvis.processes.along import Along
from genvis.processes.betas import Betas
from genvis.processes.denoiser import Denoiser, corrupt, paired, solve, target
from genvis.processes.guidance import Clipped, Guided, Interval
from genvis.processes.interpolants import GVP, VP, Linear, LinearVP, Polynomial
from genvis.processes.posterior import Posterior
from genvis.processes.predictions import EDM, Clean, Noise, Score, SiTVelocity, V, Velocity
from genvis.processes.ve import VE
from genvis.random import HashKeys
from genvis.types import Cond, Estimate, Prediction, Process


@dataclass(frozen=True)
class Cubic:
    """A path that a user might bring: nothing in genvis knows it."""

    times: tuple[float, float] = (0.0, 1.0)

    def at(self, u: Tensor) -> Tensor:
        return u

    def share(self, t: Tensor) -> Tensor:
        return t

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - t) ** 3, t**3

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -3 * (1 - t) ** 2, 3 * t**2

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 6)


PROCESSES: list[Process] = [
    Linear(), GVP(), VP(), VE(), Cubic(), LinearVP(), Polynomial(exponent=2.0),
    Betas(), Betas(schedule="cosine", count=50), Betas(schedule="scaled_linear"),
]  # fmt: skip
PREDICTIONS = [Noise(), Clean(), V(), Velocity(), SiTVelocity(), Score(), EDM(), EDM(sigma_data=1)]


def inner_times(process: Process, n: int) -> Tensor:
    """Times off the ends, and off the indices of a table."""
    return process.at(torch.linspace(0.05, 0.95, n, dtype=torch.float64)) + 0.3e-3


@pytest.mark.parametrize(("process", "prediction"), list(product(PROCESSES, PREDICTIONS)))
def test_a_perfect_network_gives_back_x0_and_eps(process: Process, prediction: Prediction) -> None:
    torch.manual_seed(0)
    x0, eps = torch.randn(2, 16, 3, 4, 4, dtype=torch.float64)
    t = inner_times(process, 16)
    out = target(process, prediction, x0, eps, t)
    found = solve(process, prediction, corrupt(process, x0, eps, t), out, t)
    torch.testing.assert_close(found, (x0, eps), rtol=0, atol=1e-8)


@pytest.mark.parametrize("process", PROCESSES)
def test_rates_are_the_derivatives_of_coeffs(process: Process) -> None:
    t = inner_times(process, 9)
    h = 1e-6
    for rate, after, before in zip(
        process.rates(t), process.coeffs(t + h), process.coeffs(t - h), strict=True
    ):
        torch.testing.assert_close(rate, (after - before) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("process", PROCESSES)
def test_time_inverts_log_snr(process: Process) -> None:
    t = inner_times(process, 19)
    alpha, sigma = process.coeffs(t)
    torch.testing.assert_close(process.time(2 * (alpha / sigma).log()), t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_path_runs_from_clean_to_noise(process: Process) -> None:
    ends = torch.tensor(process.times, dtype=torch.float64)
    alpha, sigma = process.coeffs(ends)
    assert alpha[0] == 1
    assert sigma[0] == 0
    snr = (alpha[1] / sigma[1]) ** 2
    assert snr < 5e-3
    u = torch.linspace(0, 1, 99, dtype=torch.float64)[:-1]
    t = process.at(u)
    assert (t.diff() >= 0).all()
    assert ends[0] <= t[0]
    assert t[-1] <= ends[1]
    assert ((process.share(t) - u).abs() <= 1 / 50).all()  # a table has as few as 50 indices
    assert process.time(torch.tensor(torch.inf, dtype=torch.float64)) == ends[0]
    assert process.time(torch.tensor(-torch.inf, dtype=torch.float64)) >= ends[1]
    assert process.share(ends[0]) == 0


def test_a_table_of_betas_is_exact_at_its_indices() -> None:
    bars = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    alpha, sigma = Betas().coeffs(torch.arange(1000))
    torch.testing.assert_close(alpha**2, bars, rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma**2, 1 - bars, rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_posterior_is_that_of_the_joint_gaussian(process: Process) -> None:
    """Going t -> s by q(x_s | x_t, x0) from q(x_t | x0) gives q(x_s | x0)."""
    t, s = inner_times(process, 9)[1:], inner_times(process, 9)[:-1]
    posterior = Posterior.of(process, t, s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.coeffs(t), process.coeffs(s)
    mean = posterior.on_x * alpha_t + posterior.on_x0
    variance = (posterior.on_x * sigma_t) ** 2 + posterior.small
    torch.testing.assert_close(mean, alpha_s, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(variance, sigma_s**2, rtol=1e-9, atol=1e-12)
    assert (posterior.small <= posterior.large).all()


def test_along_gives_the_same_estimate_at_equal_noise_levels() -> None:
    """The exact denoiser of one Gaussian, evaluated on its own path and on another."""
    x0, eps = torch.randn(2, 5, 1, 2, 2, dtype=torch.float64)
    for own, other in product(PROCESSES, PROCESSES):
        for end in other.times:  # beyond the ends of its own path the network's last time is used
            t = torch.tensor(end, dtype=torch.float64)
            found = Along(Exact(own), other)(corrupt(other, x0, eps, t), t, Cond())
            assert end == 0 or end == -1 or found.x0.isfinite().all()
        t = other.time(torch.tensor(0.8, dtype=torch.float64))
        there = own.time(torch.tensor(0.8, dtype=torch.float64))
        found = Along(Exact(own), other)(corrupt(other, x0, eps, t), t, Cond())
        wanted = Exact(own)(corrupt(own, x0, eps, there), there, Cond())
        torch.testing.assert_close(found.x0, wanted.x0, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.eps, wanted.eps, rtol=0, atol=1e-6)


@dataclass(frozen=True)
class Exact:
    """The denoiser of data N(0.7, 0.4^2) in every coordinate."""

    process: Process
    mean: float = 0.7
    std: float = 0.4

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        alpha, sigma = self.process.coeffs(t)
        gap = (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        return Estimate(self.mean + alpha * self.std**2 * gap, sigma * gap)


@pytest.mark.parametrize(("process", "prediction"), list(product(PROCESSES, PREDICTIONS)))
def test_a_weight_in_terms_of_x0_is_the_error_of_x0(
    process: Process, prediction: Prediction
) -> None:
    """Whatever is predicted, the weighted error is the one of x0; likewise of eps and min-SNR."""
    torch.manual_seed(0)
    x0, eps, wrong = torch.randn(3, 16, 1, 2, 2, dtype=torch.float64)
    t = inner_times(process, 16)
    x, (alpha, sigma) = corrupt(process, x0, eps, t), process.coeffs(t)
    gap = target(process, prediction, *paired(process, x, wrong, t), t) - target(
        process, prediction, x0, eps, t
    )
    error = gap.square().flatten(1).mean(1)
    true = (wrong - x0).square().flatten(1).mean(1)
    snr = (alpha / sigma) ** 2
    for weight, expected in (
        (InTermsOf(prediction=Clean()), true),
        (InTermsOf(prediction=Noise()), snr * true),
        (InTermsOf(prediction=prediction), error),
        (MinSNR(gamma=5.0), snr.clamp(max=5) * true),
        (Constant(), error),
    ):
        found = weight(process, prediction, t) * error
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_edm_starts_with_a_loss_of_one() -> None:
    """Karras et al. 2022, section 5: a network that puts out 0 has unit loss at every level."""
    process, prediction = VE(), EDM(sigma_data=0.5)
    keys = HashKeys.of(0, range(4000))
    x0, eps = 0.5 * keys.fold(0).normal((16,)).double(), keys.fold(1).normal((16,)).double()
    for level in (0.01, 0.5, 20.0):
        t = torch.full((4000,), level, dtype=torch.float64)
        loss = target(process, prediction, x0, eps, t).square().mean().item()
        assert loss == pytest.approx(1, abs=5 * (2 / 64000) ** 0.5)  # five standard errors


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
class Constantly:
    """An estimate that is its condition."""

    process: Process = PROCESSES[0]
    value: float = 1.0

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        value = torch.zeros_like(x) if cond.drop is not None else torch.full_like(x, self.value)
        return Estimate(value, 2 * value)


def test_guidance_extrapolates_and_counts_twice() -> None:
    x, t, cond = torch.zeros(2, 4, 2, 2), torch.tensor(0.5), Cond(label=torch.zeros(2).long())
    guided = Guided(Constantly(), 3.0)
    assert guided.evaluations(t) == 2
    assert torch.equal(guided(x, t, cond).x0, torch.full_like(x, 3.0))
    assert torch.equal(guided(x, t, cond).eps, torch.full_like(x, 6.0))
    some = Guided(Constantly(), 3.0, channels=3)(x, t, cond).x0
    assert torch.equal(some[:, :3], torch.full_like(some[:, :3], 3.0))
    assert torch.equal(some[:, 3:], torch.ones_like(some[:, 3:]))
    assert torch.equal(Guided(Constantly(), 1.0)(x, t, cond).x0, Constantly()(x, t, cond).x0)


def test_autoguidance_extrapolates_from_the_weaker_network() -> None:
    x, t, cond = torch.zeros(2, 4, 2, 2), torch.tensor(0.5), Cond(label=torch.zeros(2).long())
    guided = Guided(Constantly(), 3.0, reference=Constantly(value=0.5))
    assert torch.equal(guided(x, t, cond).x0, torch.full_like(x, 0.5 + 3.0 * 0.5))


def test_guidance_in_an_interval_is_free_outside() -> None:
    x, cond = torch.zeros(2, 4, 2, 2), Cond(label=torch.zeros(2).long())
    limited = Interval(Guided(Constantly(), 3.0), Constantly(), (0.2, 0.6))
    for t, cost, value in ((0.1, 1, 1.0), (0.4, 2, 3.0), (0.9, 1, 1.0)):
        at = torch.tensor(t, dtype=torch.float64)
        assert limited.evaluations(at) == cost
        assert torch.equal(limited(x, at, cond).x0, torch.full_like(x, value))


def test_rescaled_guidance_has_the_unguided_spread() -> None:
    torch.manual_seed(0)
    x, t = torch.randn(3, 4, 8, 8), torch.tensor(0.5)
    cond = Cond(label=torch.zeros(3).long())
    strong, plain = Guided(Shaped(), 4.0), Shaped()
    free = Guided(Shaped(), 4.0, rescale=1.0)(x, t, cond)
    half = Guided(Shaped(), 4.0, rescale=0.5)(x, t, cond)
    spread = [e.x0.flatten(1).std(1) for e in (plain(x, t, cond), strong(x, t, cond), free, half)]
    torch.testing.assert_close(spread[2], spread[0])
    torch.testing.assert_close(spread[3], (spread[0] + spread[1]) / 2)
    torch.testing.assert_close(0.5 * free.x0 + 0.5 * free.eps, x)  # still a pair for this x


@dataclass(frozen=True)
class Shaped(Constantly):
    """An estimate that depends on x, twice as large with its condition."""

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        x0 = x.tanh() * (1 if cond.drop is not None else 2)
        return Estimate(*paired(self.process, x, x0, t))


def test_clipping_keeps_the_pair_consistent() -> None:
    torch.manual_seed(0)
    x, t = 5 * torch.randn(2, 3, 4, 4), torch.tensor(0.5)
    found = Clipped(Shaped(), 0.8)(x, t, Cond(label=torch.zeros(2).long()))
    assert found.x0.abs().max() <= 0.8
    torch.testing.assert_close(0.5 * found.x0 + 0.5 * found.eps, x)


def test_the_negative_condition_replaces_the_dropped_one() -> None:
    negative = Cond(label=torch.tensor([3]))
    assert Cond(label=torch.tensor([1]), negative=negative).dropped() is negative

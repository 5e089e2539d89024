"""What training minimises: time samplers against their densities, and the bound's own laws."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from genvis.objectives.denoising import Denoising
from genvis.objectives.times import LogitNormal, LogNormal, Shifted, TimeSampler, Uniform
from genvis.objectives.weights import MinSNR
from genvis.processes.betas import Betas
from genvis.processes.interpolants import VP, Linear
from genvis.processes.posterior import Posterior, bound, first_variance
from genvis.processes.predictions import EDM, Noise, Velocity
from genvis.processes.ve import VE
from genvis.random import HashKeys
from genvis.tokenizers.pixels import PixelsConfig
from genvis.types import Batch, Cond, Process

N = 20_000
BAND = 1.95 / N**0.5  # Kolmogorov-Smirnov: exceeded once in a thousand, and the seed is fixed


def uniforms() -> Tensor:
    return HashKeys.of(0, range(N)).uniform()


def normal_cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


@pytest.mark.parametrize(
    ("sampler", "process", "cdf"),
    [
        (Uniform(), Linear(), lambda t: t),
        (Uniform(), VE(), lambda t: (t / 0.002).log() / torch.tensor(80 / 0.002).log()),
        (LogitNormal(mean=0.5, std=0.8), Linear(), lambda t: normal_cdf((t.logit() - 0.5) / 0.8)),
        (LogNormal(), VE(), lambda t: normal_cdf((t.log() + 1.2) / 1.2)),
        (LogNormal(mean=0.0, std=1.0), Linear(), lambda t: normal_cdf(t.logit())),
        (Shifted(shift=3.0), Linear(), lambda t: t / (3 - 2 * t)),
        (Shifted(shift=3.0), VP(), lambda t: t / (3 - 2 * t)),
    ],
)
def test_times_follow_their_density(sampler: TimeSampler, process: Process, cdf) -> None:
    t = sampler(process, uniforms()).sort().values
    empirical = torch.arange(1, N + 1, dtype=torch.float64) / N
    assert (cdf(t) - empirical).abs().max() < BAND


@pytest.mark.parametrize("process", [Linear(ends=(0.01, 0.99)), VE(), Betas(), VP()])
@pytest.mark.parametrize("sampler", [LogNormal(mean=3.0, std=2.0), Shifted(shift=3.0), Uniform()])
def test_times_stay_on_the_path_without_piling_up(sampler: TimeSampler, process: Process) -> None:
    t = sampler(process, uniforms())
    clean, noise = process.times
    assert (clean <= t).all()
    assert (t <= noise).all()
    most = t.unique(return_counts=True)[1].max() / N
    assert most < 0.01


def test_a_table_is_trained_at_every_index_alike() -> None:
    t = Uniform()(Betas(count=50), uniforms())
    counts = torch.bincount(t.long(), minlength=50).double()
    chi_squared = ((counts - N / 50) ** 2 / (N / 50)).sum().item()
    assert torch.equal(t, t.round())
    assert chi_squared < 85.4  # 49 degrees of freedom, exceeded once in a thousand


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_bound_is_zero_for_the_true_posterior_and_grows_with_its_error(schedule: str) -> None:
    process = Betas(schedule=schedule)
    torch.manual_seed(0)
    x0, x, wrong = torch.randn(3, 8, 1, 4, 4).clamp(-1, 1)
    t = torch.linspace(1, 999, 8, dtype=torch.float64).round()
    posterior, floor = Posterior.of(process, t, t - 1), first_variance(process)
    small = posterior.learned(-torch.ones_like(x), floor)
    exact = bound(posterior, x, x0, x0, small, floor)
    torch.testing.assert_close(exact, torch.zeros(8), rtol=0, atol=1e-5)
    half = bound(posterior, x, x0, (x0 + wrong) / 2, small, floor)
    full = bound(posterior, x, x0, wrong, small, floor)
    torch.testing.assert_close(full, 4 * half, rtol=1e-3, atol=1e-6)  # quadratic in the error


def test_the_likelihood_of_pixels_sums_to_one() -> None:
    """Over all 256 values that a pixel can have, at the step onto clean data."""
    process = Betas()
    values = (torch.arange(256) / 127.5 - 1).view(256, 1, 1, 1)
    x, guess = torch.full_like(values, 0.3), torch.full_like(values, 0.25)
    t = torch.zeros(256, dtype=torch.float64)
    posterior, floor = Posterior.of(process, t, t - 1), first_variance(process)
    log_variance = torch.full_like(values, -4.0)
    bits = bound(posterior, x, values, guess, log_variance, floor)
    assert (2.0**-bits).sum().item() == pytest.approx(1, abs=1e-4)


@dataclass
class Watched(nn.Module):
    """A network of two channels a channel whose parts can be read apart."""

    calls: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.1))
        self.var = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.calls.append(t)
        return torch.cat([self.mean * x, self.var * x.tanh()], dim=1)


def trained(process: Process, prediction: object) -> SimpleNamespace:
    config = SimpleNamespace(process=process, prediction=prediction)
    return SimpleNamespace(config=config, tokenizer=PixelsConfig().build())


def batch(rows: int) -> Batch:
    images = HashKeys.of(3, range(rows)).normal((3, 4, 4)).clamp(-1, 1)
    return Batch(images, Cond(label=torch.zeros(rows, dtype=torch.int64)))


def test_the_bound_trains_the_variance_alone() -> None:
    objective = Denoising(vlb=1.0)
    loss = objective.build(trained(Betas(), Noise(learned_variance=True)))
    net, keys = Watched(), HashKeys.of(0, range(16))
    found = loss(net, batch(16), keys)
    gradients = torch.autograd.grad(
        found.logs["bound"].sum(), [net.mean, net.var], allow_unused=True
    )
    assert gradients[0] == 0
    assert gradients[1].abs() > 0
    plain = found.per_sample - found.logs["bound"]
    assert (plain > 0).all()
    assert torch.equal(net.calls[0], net.calls[0].round())  # the network sees whole indices


@pytest.mark.parametrize(
    ("objective", "process", "prediction", "message"),
    [
        (Denoising(), Betas(), Noise(learned_variance=True), "would train the learned variance"),
        (Denoising(vlb=1.0), Betas(), Noise(), "needs process 'betas' and a prediction with"),
        (Denoising(vlb=1.0), VP(), Noise(learned_variance=True), "needs process 'betas'"),
    ],
)
def test_a_variance_and_its_bound_need_each_other(
    objective: Denoising, process: Process, prediction: Noise, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        objective.build(trained(process, prediction))


def test_min_snr_weights_reach_the_loss() -> None:
    level = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    net, keys = Halved(), HashKeys.of(0, range(3))
    plain, weighted = (
        Denoising(weight=weight, drop=0.0)
        .build(trained(Linear(), Velocity()))(net, batch(3), keys, level)
        .per_sample
        for weight in (Denoising().weight, MinSNR(gamma=5.0))
    )
    snr = ((1 - level) / level) ** 2
    factor = snr.clamp(max=5) * level**2  # |velocity error| = |x0 error| / t
    torch.testing.assert_close(weighted, plain * factor.float())


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.weight * x


def test_edm_sees_a_quarter_of_the_log_level() -> None:
    seen: list[Tensor] = []

    class Zero(Halved):
        def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            seen.append(t)
            return 0 * self.weight * x

    loss = Denoising(times=LogNormal(), drop=0.0).build(trained(VE(), EDM()))
    loss(Zero(), batch(64), HashKeys.of(0, range(64)))
    u = HashKeys.of(0, range(64)).fold("time").uniform()
    wanted = LogNormal()(VE(), u).log() / 4
    torch.testing.assert_close(seen[0].double(), wanted, rtol=1e-5, atol=1e-5)

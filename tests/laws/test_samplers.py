"""Solvers against closed forms and diffusers, and what every sampler promises of its state."""

from dataclasses import dataclass
from itertools import pairwise
from math import log2

import pytest
import torch
from torch import Tensor

from genvis.config import build
from genvis.processes.linear import Linear
from genvis.random import HashKeys
from genvis.samplers.diffusion import DiffusionSampler, uniform_times
from genvis.samplers.generate import generate, labelled, price, run
from genvis.samplers.generator import Generator, SamplerConfig
from genvis.samplers.solvers import Euler, Heun, Solver
from genvis.samplers.state import DiffusionState
from genvis.tokenizers.pixels import Pixels, PixelsConfig
from genvis.types import Cond, Cost, Estimate, Process, take
from tests.laws.test_processes import VE, Cosine


@dataclass(frozen=True)
class GaussianData:
    """The exact denoiser of data N(mean, std^2) in every coordinate."""

    process: Process
    mean: float = 0.7
    std: float = 0.4
    evaluations: int = 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        alpha, sigma = self.process.coeffs(t)
        variance = alpha**2 * self.std**2 + sigma**2
        x0 = self.mean + alpha * self.std**2 / variance * (x - alpha * self.mean)
        eps = sigma / variance * (x - alpha * self.mean)
        return Estimate(x0, eps)

    def flow(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact solution of the probability-flow ODE: the standardised value never changes."""
        (a, b), (c, d) = self.process.coeffs(t), self.process.coeffs(s)
        z = (x - a * self.mean) / (a**2 * self.std**2 + b**2).sqrt()
        return c * self.mean + z * (c**2 * self.std**2 + d**2).sqrt()


def moved(solver: Solver, denoise: GaussianData, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    now = denoise(x, t, Cond())
    return solver.move(denoise, DiffusionState(x, 0, Cond(), HashKeys.of(0, [0]), now), t, s).x


def error(process: Process, solver: Solver, steps: int) -> float:
    """The largest distance to the exact flow over the smooth part of the path, in float64."""
    denoise = GaussianData(process)
    first, last = 0.95 * process.times[1], 0.15 * process.times[1]
    times = torch.linspace(first, last, steps + 1, dtype=torch.float64)
    x = start = torch.linspace(-2, 2, 9, dtype=torch.float64) * process.coeffs(times[0])[1]
    for t, s in pairwise(times):
        x = moved(solver, denoise, x, t, s)
    return (x - denoise.flow(start, times[0], times[-1])).abs().max().item()


@pytest.mark.parametrize("process", [Linear(), Cosine(), VE()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2)])
def test_order_of_convergence(process: Process, solver: Solver, order: int) -> None:
    coarse, fine = error(process, solver, 80), error(process, solver, 160)
    assert log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_the_flow_ends_at_the_data_distribution() -> None:
    denoise, pixels = GaussianData(Linear()), Pixels(PixelsConfig())
    sampler = DiffusionSampler(
        denoise, pixels, Heun(), uniform_times(Linear(), 40), (3, 4, 4), torch.device("cpu")
    )
    keys = HashKeys.of(0, range(2000))
    state = sampler.init(keys.normal((3, 4, 4)), Cond(label=torch.zeros(2000).long()), keys)
    for _ in range(sampler.num_steps):
        state = sampler.step(state)
    n = state.x.numel()  # five standard errors: a false alarm in a million
    assert state.x.mean().item() == pytest.approx(0.7, abs=5 * 0.4 / n**0.5 + 1e-3)
    assert state.x.std().item() == pytest.approx(0.4, abs=5 * 0.4 / (2 * n) ** 0.5 + 1e-3)


@pytest.mark.parametrize(("ours", "theirs"), [(Euler(), "Euler"), (Heun(), "Heun")])
def test_agrees_with_diffusers_on_the_same_grid(ours: Solver, theirs: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, f"FlowMatch{theirs}DiscreteScheduler")()
    scheduler.set_timesteps(10)
    denoise = GaussianData(Linear())
    times = scheduler.sigmas.double().unique().flip(0)
    times = torch.cat([times[times > 0], torch.zeros(1, dtype=torch.float64)])
    x = y = torch.linspace(-2, 2, 9)
    for t in scheduler.timesteps:
        now = denoise(y, t.double() / 1000, Cond())
        y = scheduler.step((now.eps - now.x0).float(), t, y).prev_sample
    for t, s in pairwise(times):
        x = moved(ours, denoise, x, t, s).float()
    torch.testing.assert_close(x, y, rtol=0, atol=2e-5)


@pytest.mark.parametrize("solver", [Euler(), Heun()])
def test_stepping_is_pure_and_look_changes_nothing(generator: Generator, solver: Solver) -> None:
    sampler = generator.sampler(SamplerConfig(solver=solver, steps=3))
    keys, cond = HashKeys.of(0, range(4)), labelled(10, range(4))
    state = sampler.init(keys.normal(sampler.noise_shape), cond, keys)
    before = state.x.clone()
    with torch.no_grad():
        once, again = sampler.step(state), sampler.step(sampler.look(sampler.look(state)))
        assert torch.equal(state.x, before)
        assert torch.equal(once.x, again.x)
        rows = torch.tensor([2, 0, 2])
        forked = sampler.step(take(sampler.look(state), rows))
        torch.testing.assert_close(forked.x, take(once, rows).x, rtol=0, atol=1e-5)
        assert forked.kept is None
        assert sampler.preview(sampler.look(state)).shape == (4, 3, 8, 8)


def test_a_deterministic_sampler_refuses_a_new_future(generator: Generator) -> None:
    sampler = generator.sampler()
    keys = HashKeys.of(0, range(2))
    state = sampler.init(keys.normal(sampler.noise_shape), labelled(10, range(2)), keys)
    assert not sampler.stochastic
    with pytest.raises(ValueError, match="copies can never diverge"):
        sampler.rekey(state, keys.fold("other"))
    with pytest.raises(ValueError, match="call look"):
        sampler.preview(state)
    for _ in range(sampler.num_steps):
        state = sampler.step(state)
    with pytest.raises(ValueError, match="already made all 4 steps"):
        sampler.step(state)


@pytest.mark.parametrize(
    ("solver", "guidance", "evaluations"),
    [(Euler(), 1.0, 6), (Euler(), 2.0, 12), (Heun(), 1.0, 11), (Heun(), 2.0, 22)],
)
def test_the_price_is_what_the_network_was_called(
    generator: Generator, solver: Solver, guidance: float, evaluations: int
) -> None:
    sampler = generator.sampler(SamplerConfig(solver=solver, steps=6, guidance=guidance))
    calls = []
    handle = generator.net.register_forward_hook(lambda *_: calls.append(1))
    keys = HashKeys.of(0, range(2))
    run(sampler, keys.normal(sampler.noise_shape), labelled(10, range(2)), keys)
    handle.remove()
    assert price(sampler) == Cost(evaluations=evaluations, decodes=1)
    assert len(calls) == evaluations


def test_an_image_is_the_same_in_batches_of_1_7_and_64(generator: Generator) -> None:
    sampler, cond, keys = generator.sampler(), labelled(10, range(64)), HashKeys.of(3, range(64))
    whole = generate(sampler, cond, keys, chunk=64)
    for batch in (1, 7):
        parts = [
            generate(sampler, *take((cond, keys), slice(i, i + batch)), chunk=64)
            for i in range(0, 64, batch)
        ]
        assert torch.equal(torch.cat(parts), whole)  # to the last bit at a fixed chunk
    for chunk in (1, 7, 13):
        other = generate(sampler, cond, keys, chunk=chunk)
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-5)


def test_given_noise_replaces_the_keys_own(generator: Generator) -> None:
    sampler, cond, keys = generator.sampler(), labelled(10, range(5)), HashKeys.of(0, range(5))
    own = keys.normal(sampler.noise_shape)
    assert torch.equal(generate(sampler, cond, keys), generate(sampler, cond, keys, noise=own))
    assert not torch.equal(generate(sampler, cond, keys), generate(sampler, cond, keys, noise=-own))


@pytest.mark.parametrize("steps", [0, -1])
def test_bad_settings_are_named(generator: Generator, steps: int) -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        SamplerConfig(steps=steps)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        generate(generator.sampler(), labelled(10, range(2)), HashKeys.of(0, range(2)), chunk=0)
    with pytest.raises(ValueError, match="same rows"):
        generate(generator.sampler(), labelled(10, range(3)), HashKeys.of(0, range(2)))


def test_save_and_load_give_the_same_images(generator: Generator, tmp_path) -> None:
    generator.save_pretrained(tmp_path / "model")
    loaded = Generator.from_pretrained(tmp_path / "model")
    assert loaded.config == generator.config
    cond, keys = labelled(10, range(3)), HashKeys.of(0, range(3))
    assert torch.equal(
        generate(loaded.sampler(), cond, keys), generate(generator.sampler(), cond, keys)
    )


def test_a_quantized_generator_saves_loads_and_samples(generator: Generator, tmp_path) -> None:
    from genvis.quant.plan import Plan

    plan = build(Plan, {"rules": [{"match": "blocks.*", "weight": {"name": "int", "bits": 4}}]})
    quantized = generator.changed(plan)
    quantized.save_pretrained(tmp_path / "int4")
    loaded = Generator.from_pretrained(tmp_path / "int4")
    assert loaded.config.changes == (plan,)
    cond, keys = labelled(10, range(3)), HashKeys.of(0, range(3))
    images = generate(loaded.sampler(), cond, keys)
    assert torch.equal(images, generate(quantized.sampler(), cond, keys))
    assert not torch.equal(images, generate(generator.sampler(), cond, keys))
    weights = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("int4",)}
    generator.save_pretrained(tmp_path / "fp32")
    assert weights["int4"] < (tmp_path / "fp32" / "model.safetensors").stat().st_size / 2


def test_pixels_round_trip() -> None:
    images = torch.rand(2, 1, 4, 4).expand(-1, 3, -1, -1) * 2 - 1
    for channels in (1, 3):
        pixels = PixelsConfig(channels=channels, mean=-0.4, std=0.7).build()
        z = pixels.encode(images).mode()
        assert z.shape == (2, channels, 4, 4)
        torch.testing.assert_close(pixels.decode(z), images)
    assert pixels.decode(10 * torch.ones(1, 3, 2, 2)).max() == 1

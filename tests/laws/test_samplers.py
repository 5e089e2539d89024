"""Solvers against closed forms and diffusers, and what every sampler promises of its state."""

import math
from dataclasses import dataclass, replace
from math import log2

import pytest
import torch
from torch import Tensor

from genvis.config import build
from genvis.processes.betas import Betas
from genvis.processes.denoiser import paired
from genvis.processes.interpolants import GVP, VP, Linear
from genvis.processes.ve import VE
from genvis.random import HashKeys
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.diffusions import Decreasing, Power, Reverse, Sigma, Sine
from genvis.samplers.generate import generate, labelled, price, run
from genvis.samplers.generator import Generator, Guidance, SamplerConfig
from genvis.samplers.grids import Grid, Karras, Quadratic, Respaced, Shifted, Uniform
from genvis.samplers.solvers import DPMSolverPP2M, Euler, Heun, Midpoint, Solver
from genvis.samplers.state import DiffusionState
from genvis.samplers.stochastic import (
    DDIM,
    Ancestral,
    ChurnedHeun,
    EulerMaruyama,
    StochasticHeun,
)
from genvis.tokenizers.pixels import Pixels, PixelsConfig
from genvis.types import Cond, Cost, Denoise, Estimate, Process, take
from tests.laws.test_processes import Cubic, Exact


@dataclass(frozen=True)
class GaussianData(Exact):
    """The exact denoiser of data N(mean, std^2) in every coordinate, and the exact flow."""

    def flow(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact solution of the probability-flow ODE: the standardised value never changes."""
        (a, b), (c, d) = self.process.coeffs(t), self.process.coeffs(s)
        z = (x - a * self.mean) / (a**2 * self.std**2 + b**2).sqrt()
        return c * self.mean + z * (c**2 * self.std**2 + d**2).sqrt()


def walk(solver: Solver, denoise: Denoise, x: Tensor, times: Tensor) -> Tensor:
    """x at the end of `times`, from x at their beginning."""
    keys = HashKeys.of(0, range(len(x)))
    state = DiffusionState(x, times[0], 0, Cond(), keys)
    for k, s in enumerate(times[1:]):
        state = solver.leave(denoise.process, state, s)
        state = replace(state, kept=denoise(state.x, state.t, state.cond))
        state = replace(solver.move(denoise, state, s), t=s, k=k + 1)
    return state.x


def smooth_part(process: Process) -> tuple[float, float]:
    """Times that the shares 0.95 and 0.15 of the path lie at."""
    first, last = process.at(torch.tensor([0.95, 0.15], dtype=torch.float64)).tolist()
    return first, last


@dataclass(frozen=True)
class TwoPeaks:
    """The exact denoiser of the mixture of N(-1, 0.3^2) and N(0.8, 0.5^2), weights 0.3 and 0.7."""

    process: Process

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        peaks = Exact(self.process, -1.0, 0.3), Exact(self.process, 0.8, 0.5)
        alpha, sigma = self.process.coeffs(t)
        log_p = [
            math.log(weight)
            - 0.5 * (x - alpha * p.mean) ** 2 / (variance := (alpha * p.std) ** 2 + sigma**2)
            - 0.5 * variance.log()
            for weight, p in zip((0.3, 0.7), peaks, strict=True)
        ]
        share = torch.stack(log_p).softmax(0)
        x0 = sum(w * p(x, t, cond).x0 for w, p in zip(share, peaks, strict=True))
        return Estimate(*paired(self.process, x, x0, t))


def times_between(process: Process, steps: int) -> Tensor:
    """Over the smooth part of the path."""
    if isinstance(process, VE):
        return Karras(sigma_min=0.3, sigma_max=8.0)(process, steps + 1)[:-1]
    return torch.linspace(*smooth_part(process), steps + 1, dtype=torch.float64)


def start(process: Process, times: Tensor) -> Tensor:
    return torch.linspace(-2, 2, 9, dtype=torch.float64) * process.coeffs(times[0])[1]


PATHS: list[Process] = [Linear(), GVP(), VP(), VE(), Cubic()]
ORDERS = [(Euler(), 1), (DDIM(), 1), (Heun(), 2), (Midpoint(), 2), (DPMSolverPP2M(), 2)]


@pytest.mark.parametrize("process", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=lambda v: type(v).__name__)
def test_order_of_convergence(process: Process, solver: Solver, order: int) -> None:
    """Halving the steps of an order-p solver divides what it still changes by 2^p."""
    grids = [times_between(process, n) for n in (200, 400, 800)]
    coarse, half, quarter = (
        walk(solver, TwoPeaks(process), start(process, grid), grid) for grid in grids
    )
    ratio = (coarse - half).abs().max() / (half - quarter).abs().max()
    assert log2(ratio.item()) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("process", [*PATHS, Betas()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=lambda v: type(v).__name__)
def test_solvers_meet_the_exact_flow(process: Process, solver: Solver, order: int) -> None:
    times, denoise = times_between(process, 400), GaussianData(process)
    found = walk(solver, denoise, start(process, times), times)
    exact = denoise.flow(start(process, times), times[0], times[-1])
    assert (found - exact).abs().max() < (1e-2 if order == 1 else 1e-4)


STOCHASTIC: list[tuple[Solver, Process]] = [
    *((Ancestral(variance="small"), process) for process in (*PATHS, Betas())),
    (Ancestral(variance="large"), Betas()),
    (DDIM(eta=0.7), Betas()),
    (DDIM(eta=1.0), Linear()),
    *((EulerMaruyama(diffusion=w), Linear()) for w in (Sigma(), Decreasing(), Sine(), Power())),
    (EulerMaruyama(diffusion=Reverse()), Linear(ends=(0.0, 0.98))),
    (EulerMaruyama(diffusion=Power(scale=4.5, exponent=4.0)), VP()),
    (EulerMaruyama(), GVP()),
    (StochasticHeun(), Linear()),
    (ChurnedHeun(churn=0.2), VE(sigma_max=20.0)),
    (ChurnedHeun(churn=0.1), Linear()),
]


@pytest.mark.parametrize(("solver", "process"), STOCHASTIC, ids=lambda v: f"{type(v).__name__}")
def test_stochastic_solvers_reach_the_data_distribution(solver: Solver, process: Process) -> None:
    """Mean and standard deviation over 16,000 numbers, at five standard errors (a false alarm in a
    million) beside the discretisation's own error at 200 steps.
    """
    n, denoise, steps = 16_000, GaussianData(process), 200
    grid: Grid = Karras(sigma_max=20.0) if isinstance(process, VE) else Uniform()
    times, keys = grid(process, steps), HashKeys.of(1, range(n))
    alpha, sigma = process.coeffs(times[0])
    z = keys.fold("start").normal((1,)).double()
    begin = alpha * 0.7 + (alpha**2 * 0.16 + sigma**2).sqrt() * z  # the exact marginal
    x = walk(solver, denoise, begin, times)
    assert solver.stochastic
    assert x.mean().item() == pytest.approx(0.7, abs=5 * 0.4 / n**0.5 + 0.01)
    assert x.std().item() == pytest.approx(0.4, abs=5 * 0.4 / (2 * n) ** 0.5 + 0.02)


def test_no_diffusion_is_the_ode() -> None:
    x, times = torch.linspace(-2, 2, 9), Uniform()(Linear(), 20)
    still = EulerMaruyama(diffusion=Sigma(scale=0.0))
    found = walk(still, GaussianData(Linear()), x, times)
    torch.testing.assert_close(found, walk(Euler(), GaussianData(Linear()), x, times))


@pytest.mark.parametrize(
    ("solver", "last"),
    [
        (Ancestral(), 4),
        (DDIM(eta=0.5), 4),
        (EulerMaruyama(), 4),
        (EulerMaruyama(last="noisy"), 5),
        (StochasticHeun(), 3),
        (ChurnedHeun(), 4),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_state_is_rekeyed_exactly_while_its_future_is_random(
    generator: Generator, solver: Solver, last: int
) -> None:
    """Of 6 steps: copies with other keys differ in the end, or are refused."""
    sampler = generator.sampler(SamplerConfig(solver=solver, steps=6))
    keys = HashKeys.of(0, range(2))
    cond = labelled(10, range(2))
    state = sampler.init(keys.normal(sampler.noise_shape), cond, keys)
    with torch.no_grad():
        for k in range(7):
            if k > last:
                with pytest.raises(ValueError, match=f"nothing after step {k} of 6 by .* random"):
                    sampler.rekey(state, keys.fold("other"))
            else:
                ends = []
                for copy in (state, sampler.rekey(state, keys.fold("other"))):
                    while copy.k < 6:
                        copy = sampler.step(copy)
                    ends.append(copy.x)
                assert not torch.equal(*ends)
            if k < 6:
                state = sampler.step(state)


@pytest.mark.parametrize("interval", [(0.0, 0.62), (0.3, 1.0)])
def test_the_price_of_guidance_in_an_interval_is_exact(
    generator: Generator, interval: tuple[float, float]
) -> None:
    for solver in (Euler(), Heun(), Midpoint(), StochasticHeun(), ChurnedHeun(churn=0.3)):
        guidance = Guidance(scale=2.0, interval=interval)
        sampler = generator.sampler(SamplerConfig(solver=solver, steps=12, guidance=guidance))
        calls: list[int] = []
        handle = generator.net.register_forward_hook(lambda *_, seen=calls: seen.append(1))
        keys = HashKeys.of(0, range(2))
        state = sampler.init(keys.normal(sampler.noise_shape), labelled(10, range(2)), keys)
        for k in range(12):
            calls.clear()
            state = sampler.step(state)
            assert sampler.cost(k) == Cost(evaluations=len(calls))
        handle.remove()


def test_an_infinite_diffusion_is_refused() -> None:
    solver = EulerMaruyama(diffusion=Reverse())
    with pytest.raises(ValueError, match=r"Reverse diffusion is inf at t = 1 of Linear: narrow"):
        walk(solver, GaussianData(Linear()), torch.ones(1, 1), Uniform()(Linear(), 4))


def test_a_learned_variance_must_have_been_learned() -> None:
    solver = Ancestral(variance="learned")
    with pytest.raises(ValueError, match="needs a prediction with learned_variance"):
        walk(solver, GaussianData(Linear()), torch.ones(1, 1), Uniform()(Linear(), 4))


@pytest.mark.parametrize("solver", [Ancestral(), DDIM(eta=1.0), EulerMaruyama(), ChurnedHeun()])
def test_copies_diverge_only_when_rekeyed(generator: Generator, solver: Solver) -> None:
    sampler = generator.sampler(SamplerConfig(solver=solver, steps=4))
    keys = HashKeys.of(0, range(2))
    with torch.no_grad():
        state = sampler.step(
            sampler.init(keys.normal(sampler.noise_shape), labelled(10, range(2)), keys)
        )
        twin = sampler.rekey(state, state.keys.fold("other"))
        assert torch.equal(sampler.step(state).x, sampler.step(state).x)
        after = [sampler.step(sampler.step(s)).x for s in (state, twin)]
    assert not torch.allclose(*after, atol=1e-3)


@pytest.mark.parametrize(
    "grid",
    [
        Uniform(),
        Uniform(last=0.04),
        Quadratic(),
        Shifted(),
        Karras(sigma_min=0.02, sigma_max=20.0),
    ],
)
@pytest.mark.parametrize("process", [*PATHS, Betas()], ids=lambda p: type(p).__name__)
def test_grids_fall_from_noise_to_clean(grid: Grid, process: Process) -> None:
    for steps in (1, 2, 17):
        times = grid(process, steps)
        assert times.dtype == torch.float64
        assert len(times) == steps + 1
        assert (times.diff() < 0).all()
        assert times[-1] == process.times[0]
        assert times[0] <= process.times[1]


def test_respaced_tables_count_as_the_released_code() -> None:
    assert Respaced()(Betas(), 1000).tolist() == [*range(999, -1, -1), -1]
    assert Respaced()(Betas(), 4).tolist() == [999, 666, 333, 0, -1]
    # ties of rounding fall as in the released sum of gaps: 999 / 42 j would say 500, 880 and others
    for steps in (43, 163):
        position, indices = 0.0, []
        for _ in range(steps):
            indices.append(round(position))
            position += 999 / (steps - 1)
        assert Respaced()(Betas(), steps).tolist() == [*reversed(indices), -1]
    assert Respaced(stride=True)(Betas(), 50)[:3].tolist() == [980, 960, 940]
    assert Respaced(sections=(2, 3))(Betas(count=100), 5).tolist() == [99, 74, 50, 49, 0, -1]
    for grid, steps, message in (
        (Respaced(sections=(2, 3)), 4, "steps must be the sum of sections, 5, got 4"),
        (Respaced(), 1001, "a section of 1000 betas cannot give 1001 steps"),
        (Respaced(stride=True), 999, "no whole stride makes 999 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            grid(Betas(), steps)
    with pytest.raises(ValueError, match="needs process 'betas', got Linear"):
        Respaced()(Linear(), 4)
    with pytest.raises(ValueError, match=r"at most the process's own, 157.4"):
        Karras(sigma_max=200.0)(Betas(), 4)
    with pytest.raises(ValueError, match=r"at least the process's own, 0.0100005, got 0.002"):
        Karras()(Betas(), 4)
    with pytest.raises(ValueError, match=r"at least the process's own, 0.010101, got 0.002"):
        Karras()(Linear(ends=(0.01, 0.99)), 4)


def test_the_flow_ends_at_the_data_distribution() -> None:
    denoise, pixels = GaussianData(Linear()), Pixels(PixelsConfig())
    sampler = DiffusionSampler(
        denoise, pixels, Heun(), Uniform()(Linear(), 40), (3, 4, 4), torch.device("cpu")
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
    x = walk(ours, denoise, x, times).float()
    torch.testing.assert_close(x, y, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "solver", [Euler(), Heun(), DPMSolverPP2M(), Ancestral(), EulerMaruyama(), ChurnedHeun()]
)
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
    [
        (Euler(), 1.0, 6),
        (Euler(), 2.0, 12),
        (Heun(), 1.0, 11),
        (Heun(), 2.0, 22),
        (Midpoint(), 1.0, 12),
        (DPMSolverPP2M(), 1.0, 6),
        (Ancestral(), 2.0, 12),
        (StochasticHeun(), 1.0, 11),
        (ChurnedHeun(), 1.0, 11),
    ],
)
def test_the_price_is_what_the_network_was_called(
    generator: Generator, solver: Solver, guidance: float, evaluations: int
) -> None:
    sampler = generator.sampler(
        SamplerConfig(solver=solver, steps=6, guidance=Guidance(scale=guidance))
    )
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


def test_a_network_without_classes_is_sampled_too(tmp_path) -> None:
    from genvis.samplers.folder import Sampling, sample_folder
    from genvis.samplers.generator import GeneratorConfig

    backbone = {"name": "uvit", "size": 8, "channels": 1, "num_classes": 0}
    small = {"patch": 4, "width": 16, "depth": 2, "heads": 2}
    config = build(
        GeneratorConfig,
        {
            "backbone": {**backbone, **small},
            "process": {"name": "linear"},
            "prediction": {"name": "velocity"},
            "tokenizer": {"name": "pixels", "channels": 1},
        },
    )
    sampling = Sampling(sampler=SamplerConfig(steps=2), count=5, chunk=2)
    images, labels = sample_folder(config.build(), sampling, tmp_path / "samples", "fresh")
    assert images.shape == (5, 3, 8, 8)
    assert labels is None
    with pytest.raises(
        ValueError, match=r"classes must be in none: this model has no classes, got \[3\]"
    ):
        Sampling(sampler=SamplerConfig(), classes=(3,)).things(config.build())

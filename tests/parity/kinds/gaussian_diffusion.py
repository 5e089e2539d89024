"""The released DDPM code: schedules, respacing, single steps, losses and whole sampling loops."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from golden_case import Case
from latents import Latents
from recorded import Recorded
from torch import Tensor, nn

from genvis.objectives.denoising import Denoising
from genvis.processes.betas import Betas
from genvis.processes.denoiser import corrupt, like, paired
from genvis.processes.guidance import Clipped
from genvis.processes.posterior import Posterior, bound, prior_bound
from genvis.processes.predictions import Noise
from genvis.random import HashKeys
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.generate import run
from genvis.samplers.grids import Respaced
from genvis.samplers.solvers import Euler, Solver
from genvis.samplers.state import DiffusionState
from genvis.samplers.stochastic import DDIM, Ancestral
from genvis.types import Batch, Cond, Denoise, Estimate, Loss, Moments

ARRAYS, TENSORS, LOOPS = (0.0, 1e-9), (1e-5, 1e-4), (1e-4, 1e-3)
SCHEDULES = {"linear": "linear", "squaredcos_cap_v2": "cosine", "cosine": "cosine"}


@dataclass(frozen=True)
class Table:
    """A chain of kept indices: step i goes from kept[i] to kept[i - 1], step 0 to clean."""

    process: Betas
    kept: Tensor  # (S,) rising

    @classmethod
    def respaced(cls, process: Betas, spec: str) -> "Table":
        if spec.startswith("ddim"):
            times = Respaced(stride=True)(process, int(spec.removeprefix("ddim")))
        else:
            sections = tuple(int(part) for part in spec.split(","))
            times = Respaced(sections=sections)(process, sum(sections))
        return cls(process, times[:-1].flip(0))

    @property
    def posteriors(self) -> Posterior:
        before = torch.cat([torch.tensor([-1.0], dtype=torch.float64), self.kept[:-1]])
        return Posterior.of(self.process, self.kept, before)

    @property
    def floor(self) -> Tensor:
        return self.posteriors.small[1]

    def step(self, i: Tensor) -> Posterior:
        """The posteriors of steps i (B,)."""
        p = self.posteriors
        return Posterior(p.on_x[i], p.on_x0[i], p.small[i], p.large[i])


def check(case: Case) -> None:
    spec, given = case.spec, case.tensors("in/")
    process = Betas(schedule=SCHEDULES[spec["schedule"]], count=spec["steps"])
    tables = {"full": Table(process, torch.arange(spec["steps"], dtype=torch.float64))}
    for respacing in spec["respacings"]:
        tables["respace" + respacing.replace(",", "_")] = Table.respaced(process, respacing)
    for name, table in tables.items():
        for key, value in arrays(table).items():
            case.compare(f"{name}_{key}", value, tolerance=ARRAYS)
    for key, value in single_steps(tables["full"], given).items():
        if key in case.expected:
            case.compare(key, value, tolerance=TENSORS)
    trained = training_loss(process, given)
    case.compare("loss_learned_loss", trained.per_sample, tolerance=TENSORS)
    case.compare("loss_learned_vb", trained.logs["bound"], tolerance=TENSORS)
    toy = Toy(process, spec["toy_model"])
    for name, table in tables.items():
        if f"in/{name}_t" in case.stored:
            i = given[f"{name}_t"]
            mse, vb = losses(table, toy, given, i)
            case.compare(f"{name}_loss", mse + vb, tolerance=LOOPS)
        if f"in/{name}_init" in case.stored:
            for key, solver in LOOP_SOLVERS.items():
                if f"{name}_{key}" in case.expected:
                    found = loop(table, toy, solver, given[f"{name}_init"], given[f"{name}_noises"])
                    case.compare(f"{name}_{key}", found, tolerance=LOOPS)


def arrays(table: Table) -> dict[str, Tensor]:
    posteriors = table.posteriors
    bars = table.process.coeffs(table.kept)[0] ** 2
    small = posteriors.small
    return {
        "betas": posteriors.large,
        "alphas_cumprod": bars,
        "alphas_cumprod_prev": torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]]),
        "posterior_variance": small,
        "posterior_log_variance_clipped": small.clamp(min=table.floor).log(),
        "posterior_mean_coef1": posteriors.on_x0,
        "posterior_mean_coef2": posteriors.on_x,
        "timestep_map": table.kept,
    }


@dataclass(frozen=True)
class Said:
    """A network whose output is given: noise first, then the raw variance."""

    process: Betas
    output: Tensor

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        eps, var = self.output.chunk(2, dim=1)
        alpha, sigma = (like(c, x) for c in self.process.coeffs(t))
        return Estimate((x - sigma * eps) / alpha, eps, var)


@dataclass(frozen=True)
class Toy:
    process: Betas
    spec: dict[str, float]

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        s = like(t / 1000, x)
        eps = self.spec["a"] * x.tanh() + self.spec["b"] * torch.sin(3 * s)
        alpha, sigma = (like(c, x) for c in self.process.coeffs(t))
        return Estimate((x - sigma * eps) / alpha, eps, self.spec["c"] * torch.cos(x + s))


def single_steps(table: Table, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Everything recorded of one step of the whole chain, x_start noised and the output given."""
    process, t = table.process, given["t"]
    x0, eps, output = given["x_start"], given["noise"], given["model_output"]
    x = corrupt(process, x0, eps, t)
    step = table.step(t)
    alpha, sigma = process.coeffs(t.double())
    guess, var = output.chunk(2, dim=1)
    found = {
        "x_t": x,
        "q_post_mean": step.mean(x, x0),
        "q_post_var": like(step.small, x) + torch.zeros_like(x),
        "q_post_logvar": like(step.small.clamp(min=table.floor).log(), x) + torch.zeros_like(x),
        "q_mean": like(alpha, x) * x0,
        "q_var": like(sigma**2, x) + torch.zeros_like(x),
        "prior_bpd": prior_bound(process, x0),
    }
    mse = (guess - eps).square().flatten(1).mean(1)
    said = Said(process, output)
    estimate = said(x, t, Cond())
    log_variance = step.learned(var, table.floor)
    vb = bound(step, x, x0, estimate.x0, log_variance, table.floor)
    found |= {
        "loss_learned_mse": mse,
        "loss_learned_vb": vb,
        "loss_learned_loss": mse + vb,
        "loss_rescaled_mse": mse,
        "loss_rescaled_vb": vb * len(table.kept) / 1000,
        "loss_rescaled_loss": mse + vb * len(table.kept) / 1000,
        "loss_kl_loss": vb * len(table.kept),
        "loss_fixedlarge": mse,
        "loss_fixedsmall": mse,
        "loss_xstart": (guess - x0).square().flatten(1).mean(1),
        "vb_bits": vb,
        "pred_xstart": estimate.x0,
    }
    z = given["step_noise"]
    taken = {
        "p_sample_fixedlarge": (Ancestral(variance="large"), said),
        "p_sample_fixedsmall": (Ancestral(variance="small"), said),
        "p_sample_xstart": (Ancestral(variance="large"), Predicted(process, guess)),
    }
    for suffix, denoise in {"": said, "_clip": Clipped(said)}.items():
        clipped = denoise(x, t, Cond())
        found[f"p_mean{suffix}"] = step.mean(x, clipped.x0)
        found[f"p_logvar{suffix}"] = log_variance
        taken[f"p_sample{suffix}"] = (Ancestral(variance="learned"), denoise)
        taken[f"ddim_eta0.0{suffix}"] = (DDIM(eta=0.0), denoise)
        taken[f"ddim_eta0.7{suffix}"] = (DDIM(eta=0.7), denoise)
        found[f"ddim_reverse{suffix}"] = up(denoise, x, t)
    return found | {name: down(*how, x, t, z) for name, how in taken.items()}


@dataclass(frozen=True)
class Predicted:
    """A network that put out x0."""

    process: Betas
    x0: Tensor

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        return Estimate(*paired(self.process, x, self.x0, t))


def down(solver: Solver, denoise: Denoise, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """One step from every row's own time to the index below."""
    looked = denoise(x, t, Cond())
    rows = []
    for i, now in enumerate(t.double()):
        own = Estimate(*(part if part is None else part[i : i + 1] for part in parts(looked)))
        state = DiffusionState(x[i : i + 1], now, 0, Cond(), Recorded(z[None, i : i + 1]), own)
        rows.append(solver.move(denoise, state, now - 1).x)
    return torch.cat(rows)


def parts(estimate: Estimate) -> tuple[Tensor, Tensor, Tensor | None]:
    return estimate.x0, estimate.eps, estimate.var


def up(denoise: Denoise, x: Tensor, t: Tensor) -> Tensor:
    """Deterministic DDIM towards the noise. Above the table upstream takes alpha to be 0."""
    last, rows = denoise.process.times[1], []
    looked = denoise(x, t, Cond())
    for i, now in enumerate(t.double()):
        own = Estimate(looked.x0[i : i + 1], looked.eps[i : i + 1])
        state = DiffusionState(x[i : i + 1], now, 0, Cond(), HashKeys.of(0, [0]), own)
        rows.append(own.eps if now == last else Euler().move(denoise, state, now + 1).x)
    return torch.cat(rows)


def losses(
    table: Table, denoise: Denoise, given: dict[str, Tensor], i: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean squared error of eps and the bound, at the steps i of a respaced chain."""
    t = table.kept[i]
    x0, eps = given["x_start"], given["noise"]
    x = corrupt(table.process, x0, eps, t)
    found, step = denoise(x, t, Cond()), table.step(i)
    assert found.var is not None
    vb = bound(step, x, x0, found.x0, step.learned(found.var, table.floor), table.floor)
    return (found.eps - eps).square().flatten(1).mean(1), vb


class Silent(nn.Module):
    """A network that puts out what it was given to say."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.output


def training_loss(process: Betas, given: dict[str, Tensor]) -> Loss:
    """The same losses by the objective that trains, at the recorded times and noise."""
    config = SimpleNamespace(process=process, prediction=Noise(learned_variance=True))
    model = SimpleNamespace(config=config, tokenizer=Latents())
    loss = Denoising(vlb=1.0, drop=0.0).build(model)
    batch = Batch(Moments(given["x_start"]), Cond())
    level = (given["t"].double() + 0.5) / process.count
    with torch.no_grad():
        return loss(Silent(given["model_output"]), batch, Whatever(given["noise"]), level)


@dataclass(frozen=True)
class Whatever:
    """Keys with one noise for every purpose."""

    noise: Tensor

    def fold(self, *words: int | str) -> "Whatever":
        return self

    def split(self, n: int) -> "Whatever":
        return self

    def normal(self, shape: Sequence[int], device: torch.device | str | None = None) -> Tensor:
        return self.noise

    def uniform(
        self, shape: Sequence[int] = (), device: torch.device | str | None = None
    ) -> Tensor:
        return self.noise.flatten(1)[:, 0].double().sigmoid()


LOOP_SOLVERS = {
    "ddpm": Ancestral(variance="learned"),
    "ddim_eta0": DDIM(eta=0.0),
    "ddim_eta1": DDIM(eta=1.0),
}


def loop(table: Table, toy: Denoise, solver: Solver, init: Tensor, noises: Tensor) -> Tensor:
    """A whole respaced trajectory with clipping, one recorded noise a step."""
    times = torch.cat([table.kept.flip(0), torch.tensor([-1.0], dtype=torch.float64)])
    sampler = DiffusionSampler(
        Clipped(toy), Latents(), solver, times, tuple(init.shape[1:]), init.device
    )
    label = torch.zeros(len(init), dtype=torch.int64)
    start = init / toy.process.coeffs(times[0])[1].float()  # theirs starts at init itself
    return run(sampler, start, Cond(label=label), Recorded(noises))

"""Flows as SDEs: interpolants, one step, trajectories, Rollover Budget Forcing; and the mixture
that the statistical tests rest on.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from golden_case import Case
from latents import Latents
from mixture import Mixture, MixtureDenoise, from_golden
from recorded import Recorded
from torch import Tensor

from genvis.processes.along import Along, log_snr
from genvis.processes.interpolants import GVP, VP, Linear, LinearVP, Polynomial
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.diffusions import Volatility
from genvis.samplers.grids import Circle, Uniform
from genvis.samplers.solvers import slope
from genvis.samplers.state import DiffusionState
from genvis.samplers.stochastic import EulerMaruyama
from genvis.search.ledger import Ledger
from genvis.search.metered import Metered
from genvis.search.rbf import RolloverBudgetForcing
from genvis.types import Cond, Denoise, Estimate, Process

LINEAR = Linear()
PROCESSES = {"linear": LINEAR, "vp": VP(), "cosine": GVP(), "linear_vp": LinearVP()}
STEP, PATH, EXACT, CLOSED = (2e-4, 2e-4), (2e-3, 2e-3), (0.0, 0.0), (1e-10, 1e-8)


def check(case: Case) -> None:
    given = case.tensors("in/")
    if "tilt_mean" in case.expected:
        tilted(case, given)
    elif "adaptive_time_M10" in case.expected or "linear/alpha" in case.expected:
        interpolants(case, given["s"].double())
    elif "u_model" in given:
        step(case, given)
    elif "init" in given:
        rollover(case, given)
    elif "S" in given:
        trajectory(case, given)
    else:
        case.unclaimed("none of its inputs is known")


def interpolants(case: Case, s: Tensor) -> None:
    for name in sorted({key.partition("/")[0] for key in case.expected if "/" in key}):
        exponent = name.removeprefix("poly")
        process = PROCESSES.get(name) or Polynomial(exponent=float(exponent))
        values = (*process.coeffs(s), *process.rates(s))
        for key, value in zip(("alpha", "sigma", "d_alpha", "d_sigma"), values, strict=True):
            case.compare(f"{name}/{key}", value, tolerance=(1e-6, 1e-5))
        case.compare(f"{name}/snr_inverse", process.time(log_snr(process, s)), tolerance=(0, 1e-4))
    for key in case.expected:
        if key.startswith("adaptive_time_M"):
            steps = int(key.removeprefix("adaptive_time_M"))
            case.compare(key, Circle()(VP(), steps), tolerance=(1e-6, 1e-5))


def process_of(text: str) -> Process:
    """The sampling interpolant that a config describes."""
    if "linear_vp" in text or "sqrt(1-s^2)" in text:
        return LinearVP()
    if "VP" in text:
        betas = re.search(r"beta_min ([\d.]+\d), beta_max ([\d.]*\d)|VP ([\d.]+)/([\d.]+)", text)
        low, high = (float(b) for b in betas.groups() if b) if betas else (0.1, 20.0)
        return VP(beta_min=low, beta_max=high)
    if "poly" in text:
        exponent = re.search(r"\(1-s\)\^(\d+)", text)
        return Polynomial(exponent=float(exponent[1]) if exponent else 1.0)
    return GVP() if "cos" in text else LINEAR


def volatility_of(text: str) -> Volatility:
    """g from its formula: a factor, if any, and a shape, constant if none."""
    parts = re.fullmatch(r"\s*(?:([\d.]+)\s*\*?)?\s*(.*?)\s*", text)
    assert parts is not None
    known = {
        "s^2": "square", "square": "square", "sigma": "sigma", "sin": "sin", "tan": "tan",
        "exp": "exp", "clip": "clipping", "max": "clipping", "s": "linear", "linear": "linear",
    }  # fmt: skip
    shape = max((k for k in known if parts[2].startswith(k)), key=len, default=None)
    name = known[shape] if shape else "constant"
    return Volatility(scale=float(parts[1] or 1), shape=name)  # type: ignore[arg-type]


@dataclass
class Velocities:
    """A model of the linear path that always answers the same, and remembers what it was asked."""

    u: Tensor
    process: Process = LINEAR
    asked: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        self.asked.append((x, t))
        return Estimate(x - t * self.u, x + (1 - t) * self.u)


def step(case: Case, given: dict[str, Tensor]) -> None:
    """Row by row, as every row has its own times; in float64."""
    spec, found = case.spec["config"], {name: [] for name in case.expected}
    process, volatility = process_of(spec["interpolant"]), volatility_of(spec["g"])
    solver = EulerMaruyama(diffusion=volatility, last="noisy")
    for x, s, ds, u, z in zip(
        *(given[name].double() for name in ("x", "s", "ds", "u_model", "z")), strict=True
    ):
        model = Velocities(u[None])
        estimate = Along(model, process)(x[None], s, Cond())
        (x_query, t_query), (alpha, sigma) = model.asked[0], process.coeffs(s)
        state = DiffusionState(x[None], s, 0, Cond(), Recorded(z[None, None]), kept=estimate)
        mean, std = solver.transition(process, state, s - ds)
        row = {
            "t_query": t_query, "x_query": x_query[0], "alpha": alpha, "sigma": sigma,
            "u": slope(process, estimate, s)[0], "score": -estimate.eps[0] / sigma,
            "x0": estimate.x0[0], "g": (2 * volatility(process, s)).sqrt(),
            "drift": (mean - x)[0] / ds, "x_next": (mean + std * z)[0],
        }  # fmt: skip
        row["d_alpha"], row["d_sigma"] = process.rates(s)
        for name, value in row.items():
            found[name].append(value)
    for name, rows in found.items():
        case.compare(name, torch.stack(rows), tolerance=STEP)


def sampler_along(
    mixture: Mixture, config: dict[str, Any], times: Tensor, shape: tuple[int, ...]
) -> DiffusionSampler:
    """The mixture's flow, sampled as an SDE along the interpolant that the config names."""
    model, process = MixtureDenoise(mixture, Linear()), process_of(config["interpolant"])
    denoise: Denoise = model if process == Linear() else Along(model, process)
    solver = EulerMaruyama(diffusion=volatility_of(config["g"]), last="noisy")
    return DiffusionSampler(denoise, Latents(), solver, times, shape, torch.device("cpu"))


def trajectory(case: Case, given: dict[str, Tensor]) -> None:
    mixture, _ = from_golden(given)
    x1, z, times = given["x1"].double(), given["z"].double(), given["S"].double()
    sampler = sampler_along(mixture, case.spec["config"], times, tuple(x1.shape[1:]))
    sigma = sampler.denoise.process.coeffs(times[0])[1]
    none = Cond(drop=torch.ones(len(x1), dtype=torch.bool))
    state = sampler.init(x1 / sigma, none, Recorded(z))
    xs, previews = [state.x], []
    for _ in range(sampler.num_steps):
        state = sampler.look(state)
        previews.append(sampler.preview(state))
        state = sampler.step(state)
        xs.append(state.x)
    case.compare("x", torch.stack(xs), tolerance=PATH)
    case.compare("x0", torch.stack(previews), tolerance=PATH)


class Record:
    """Recorded noises: to start from (candidates, ...), and of every try (tries, chains, ...)."""

    def __init__(self, start: Tensor, z: Tensor) -> None:
        self.start, self.z, self.each = start, z, len(start) // z.shape[1]


@dataclass(frozen=True)
class Proposals:
    """Keys of candidates that read their noise from the record: of the i-th try, else their own."""

    rows: Tensor
    record: Record
    i: int = -1

    def fold(self, *words: int | str) -> Self:
        if words[0] == "candidate":
            return replace(self, rows=self.rows + int(words[1]))
        return replace(self, i=int(words[1])) if words[0] == "try" else self

    def normal(self, shape: tuple[int, ...], device: Any = None) -> Tensor:
        if self.i < 0:
            return self.record.start[self.rows]
        return self.record.z[self.i, self.rows // self.record.each]


@dataclass(frozen=True)
class Reward:
    target: Tensor
    name: str = "reward"

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        far = ((images - self.target) ** 2).sum(1)
        return 3 * torch.sin(4 * images).sum(1) - far


def rollover(case: Case, given: dict[str, Tensor]) -> None:
    """One prompt, unfinished as released, and every number of every round."""
    spec, (mixture, _) = case.spec["config"], from_golden(given)
    steps = spec["max_steps"]
    path, start = process_of(spec["interpolant"]), given["init"].double()
    grid = Circle() if "sqrt" in spec["times"] else Uniform()
    times = grid(path, steps)
    sampler = sampler_along(mixture, spec, times, tuple(start.shape[1:]))
    search = RolloverBudgetForcing(
        chains=spec["chains"], initial=spec["init_per_chain"], nfe=spec["max_nfe"], finish=False
    )
    assert search.plan(sampler)[0] == spec["base_quota"]
    record = Record(start / path.coeffs(times[0])[1], given["z"].double())
    keys, cond = Proposals(torch.tensor([0]), record), Cond(drop=torch.ones(1, dtype=torch.bool))
    reward, found = Reward(given["target"].double()), {name: [] for name in case.expected}
    meter = Metered(sampler, reward, Ledger(), chunk=64, prompts=1)
    for chains, this in list(search.walk(meter, cond, keys))[1:]:  # type: ignore[arg-type]
        at = [chain.at.here for chain in chains]
        k = torch.tensor([here.k for here in at])
        found["nfe"].append(this.spent.evaluations)
        found["t"].append(1 - k / steps)
        found["best_reward"].append([chain.goal for chain in chains])
        found["step"].append(k)
        found["quota"].append([chain.quota for chain in chains])
        found["tried"].append([chain.tried + 1 for chain in chains])
        found["x"].append(torch.cat([here.state.x for here in at]))
    for name in ("nfe", "step", "quota", "tried"):
        case.compare(name, torch.stack([torch.as_tensor(r) for r in found[name]]), tolerance=EXACT)
    case.compare("t", torch.stack(found["t"]), tolerance=(1e-5, 0))
    case.compare("best_reward", torch.tensor(found["best_reward"]), tolerance=PATH)
    case.compare("x", torch.stack(found["x"]), tolerance=PATH)
    answer = search(sampler, cond, reward, keys, Ledger())  # type: ignore[arg-type]
    case.compare("final_x0", answer.images, tolerance=PATH)
    case.compare("final_reward", answer.scores, tolerance=PATH)


def tilted(case: Case, given: dict[str, Tensor]) -> None:
    mixture, tilt = from_golden(given)
    target, log_z = mixture.tilted(tilt)
    double = mixture.tilted(replace(tilt, lam=2 * tilt.lam))[1]
    reward = target.expect(tilt)
    outputs = {
        "base_mean": mixture.mean, "base_cov": mixture.cov,
        "base_reward": mixture.expect(tilt)[None], "tilt_weights": target.weights,
        "tilt_means": target.means, "tilt_covs": target.covs, "tilt_mean": target.mean,
        "tilt_cov": target.cov, "tilt_reward": reward[None], "logZ": log_z[None],
        "importance_ess_fraction": (2 * log_z - double).exp()[None],
        "kl_tilt_base": (tilt.lam * reward - log_z)[None],
    }  # fmt: skip
    for name, value in outputs.items():
        case.compare(name, value, tolerance=CLOSED)
    for name, process in (("vp", VP()), ("linear", Linear())):
        along: dict[str, list[Tensor]] = {}
        for x, s in zip(given["x"], given["s"], strict=True):
            for key, value in probes(mixture, tilt, process, x, s).items():
                along.setdefault(f"{name}/{key}", []).append(value)
        for key, values in along.items():
            case.compare(key, torch.stack(values), tolerance=CLOSED)


def probes(
    mixture: Mixture, tilt: Any, process: Process, x: Tensor, s: Tensor
) -> dict[str, Tensor]:
    """What is known at x (P, d) and time s; x0, score and velocity by way of the linear path."""
    alpha, sigma = process.coeffs(s)
    posterior = mixture.posterior(x, alpha, sigma)
    estimate = Along(MixtureDenoise(mixture, Linear()), process)(x, s, Cond())
    return {
        "x0": estimate.x0,
        "score": -estimate.eps / sigma,
        "velocity": slope(process, estimate, s),
        "logp": mixture.log_p(x, alpha, sigma),
        "value": posterior.tilted(tilt)[1],
        "reward_of_x0": tilt(posterior.mean),
        "resp": posterior.weights,
    }

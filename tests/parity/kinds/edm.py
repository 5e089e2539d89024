"""EDM: preconditioning, loss, noise schedule, both samplers; and diffusers' schedulers."""

from dataclasses import dataclass, field
from typing import Any

import torch
from golden_case import Case
from latents import Latents
from recorded import Recorded
from torch import Tensor

from genvis.objectives.weights import Constant
from genvis.processes.along import Along
from genvis.processes.betas import Betas
from genvis.processes.denoiser import corrupt, like, paired, solve, target
from genvis.processes.interpolants import Linear
from genvis.processes.predictions import EDM
from genvis.processes.ve import VE
from genvis.random import Keys
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.grids import Karras
from genvis.samplers.solvers import DPMSolverPP2M, Euler, Heun, Solver
from genvis.samplers.state import DiffusionState
from genvis.samplers.stochastic import DDIM, ChurnedHeun
from genvis.types import Cond, Denoise, Estimate, Process

LATER = {
    "phema": "post-hoc EMA is not built yet",
    "training_utils": "these training utilities are not built yet",
}


def check(case: Case) -> None:
    for name, why in LATER.items():
        if case.name.startswith(name):
            case.later(why)
    checks = {
        "precond": check_preconditioning,
        "losses": check_losses,
        "sigma_schedule": check_schedules,
        "heun_gmm": check_samplers,
        "schedulers": check_schedulers,
    }
    chosen = [function for name, function in checks.items() if case.name.startswith(name)]
    if not chosen:
        case.unclaimed()
    chosen[0](case)


def check_preconditioning(case: Case) -> None:
    given, process = case.tensors("in/"), VE()
    prediction = EDM(sigma_data=case.spec["config"]["sigma_data"])
    x, out, sigma = given["x"], given["F"], given["sigma"]
    (p, q), (scale, time) = prediction.row(process, sigma), prediction.inputs(process, sigma)
    c_out = 1 / (p - q / sigma)  # at a given x an error of F is this share of one of x0
    x0, eps = solve(process, prediction, x, out, sigma)
    case.compare("c_in", scale)
    case.compare("c_noise", time)
    case.compare("c_out", c_out)
    case.compare("c_skip", -q / sigma * c_out)
    case.compare("D", x0)
    rounding = 1e-7 / like(sigma, x)  # x - x0 is divided by sigma, in another order than ours
    case.compare("ode_dx_dsigma", eps, slack=rounding)
    case.compare("score", -eps / like(sigma, x), slack=rounding / like(sigma, x))


def check_losses(case: Case) -> None:
    config, given, process = case.spec["config"], case.tensors("in/"), VE()
    prediction = EDM(sigma_data=config["sigma_data"])
    sigma = (given["rnd_normal"] * config["P_std"] + config["P_mean"]).exp()
    t = sigma.flatten()
    x0 = given["images"]
    x = corrupt(process, x0, given["eps"], t)
    denoised = x / (1 + sigma**2) + 0.1 * x.tanh() * torch.exp(-sigma)
    out = target(process, prediction, *paired(process, x, denoised, t), t)
    wanted = target(process, prediction, x0, given["eps"], t)
    weight = Constant()(process, prediction, t)
    loss = like(weight, x) * (out - wanted) ** 2
    p, q = prediction.row(process, t)
    case.compare("sigma", sigma)
    case.compare("weight", like((p - q / t) ** 2, x))
    case.compare("edm_loss", loss)
    case.compare("edm_loss_per_sample_mean", loss.flatten(1).mean(1))
    if "edm2_loss" in case.expected:
        case.omit("edm2_loss", "the uncertainty head belongs to EDM2's network, which is not here")


def check_schedules(case: Case) -> None:
    for name, given in case.spec["config"].items():
        grid = Karras(
            sigma_min=float(given["sigma_min"]),
            sigma_max=float(given["sigma_max"]),
            rho=float(given["rho"]),
        )
        process = VE(sigma_min=grid.sigma_min, sigma_max=grid.sigma_max)
        case.compare(name, grid(process, given["num_steps"]))


# --- samplers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mixture:
    """The exact denoiser of the mixture sum_k w_k N(mu_k, s_k^2); it notes where it was asked."""

    process: Process
    w: Tensor
    mu: Tensor
    s: Tensor
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        self.calls.append((x, t))
        alpha, sigma = self.process.coeffs(t)
        variance = alpha**2 * self.s**2 + sigma**2  # (K,)
        gap = x.flatten(1)[:, None] - alpha * self.mu  # (B, K, D)
        log_p = self.w.log() - gap.square().sum(-1) / (2 * variance)
        log_p = log_p - variance.log() * self.mu.shape[1] / 2
        means = self.mu + (alpha * self.s**2 / variance)[:, None] * gap
        x0 = (log_p.softmax(1)[..., None] * means).sum(1).view_as(x)
        return Estimate(*paired(self.process, x, x0, t))


def check_samplers(case: Case) -> None:
    config, given = case.spec["config"], case.tensors("in/")
    steps, tolerance = config["num_steps"], (case.spec["tolerance"]["atol"], 0.0)
    edges = config.get("sigma_min", 0.002), config.get("sigma_max", 80.0)
    process = VE(sigma_min=edges[0], sigma_max=edges[1])
    grid = Karras(sigma_min=edges[0], sigma_max=edges[1], rho=float(config.get("rho", 7)))
    mixture = Mixture(process, given["w"], given["mu"], given["s"])
    solver: Solver = Heun()
    if config.get("S_churn", 0) > 0:
        solver = ChurnedHeun(
            churn=min(config["S_churn"] / steps, 2**0.5 - 1),
            levels=(float(config.get("S_min", 0)), float(config.get("S_max", "inf"))),
            inflation=config.get("S_noise", 1.0),
        )
    keys = Recorded(given["churn_noise"]) if "churn_noise" in given else Recorded(given["latents"])
    found = trajectory(mixture, solver, grid(process, steps), given["latents"], keys)
    case.compare("sample", found[-1], tolerance=tolerance)
    points, times = zip(*mixture.calls, strict=True)
    case.compare("x_at_call", torch.stack(points), tolerance=tolerance)
    case.compare("sigma_at_call", torch.stack(times), tolerance=tolerance)


def trajectory(
    denoise: Denoise, solver: Solver, times: Tensor, noise: Tensor, keys: Keys
) -> list[Tensor]:
    """x at every time of the grid."""
    shape = tuple(noise.shape[1:])
    sampler = DiffusionSampler(denoise, Latents(), solver, times, shape, noise.device)
    cond = Cond(label=torch.zeros(len(noise), dtype=torch.int64))
    states = [sampler.init(noise, cond, keys)]
    for _ in range(sampler.num_steps):
        states.append(sampler.step(states[-1]))
    return [state.x for state in states]


# --- diffusers' schedulers -----------------------------------------------------------------------


def check_schedulers(case: Case) -> None:
    given = case.tensors("in/")
    for name, config in case.spec["config"].items():
        kind = config["class"]
        if kind == "UniPCMultistepScheduler":
            case.omit(f"{name}_*", "UniPC is not one of our solvers")
        elif kind.startswith("FlowMatch"):
            check_flow(case, name, given, Heun() if "Heun" in kind else Euler())
        elif kind == "DDIMScheduler":
            check_ddim(case, name, config, given)
        elif kind == "DPMSolverMultistepScheduler":
            order, kwargs = config["kwargs"].get("solver_order", 2), config["kwargs"]
            if kwargs.get("algorithm_type", "dpmsolver++") != "dpmsolver++" or order > 2:
                case.unclaimed(f"{name}: {kwargs}")
            solver: Solver = DPMSolverPP2M() if order == 2 else Euler()
            check_levels(case, name, given, solver, table(config), table(config))
        elif kind in ("HeunDiscreteScheduler", "EulerDiscreteScheduler"):
            solver = Heun() if "Heun" in kind else Euler()
            check_levels(case, name, given, solver, table(config), VE(sigma_max=1e3))
        else:
            case.unclaimed(f"{name} of {kind}")


def compare_path(case: Case, name: str, path: list[Tensor]) -> None:
    """The final sample, and every state that both count: Heun's second calls are theirs alone."""
    spec, stored = case.spec["tolerance"], case.expected[f"{name}_traj"]
    case.compare(f"{name}_sample", path[-1], tolerance=(spec["final_atol"], 0.0))
    found = torch.stack(path)
    if len(stored) != len(found):  # their states: before each first and second call, and the last
        stored = torch.cat([stored[:-1:2], stored[-1:]])
    atol = spec["traj_rtol"] * float(stored.abs().max())
    case.compare(f"{name}_traj", found, stored, tolerance=(atol, spec["traj_rtol"]))


def check_flow(case: Case, name: str, given: dict[str, Tensor], solver: Solver) -> None:
    times = case.expected[f"{name}_sigmas"].double()
    times = times[torch.cat([torch.ones(1, dtype=torch.bool), times.diff() < 0])]
    mixture = Mixture(Linear(), given["w"], given["mu"], given["s"])
    path = trajectory(mixture, solver, times, given["noise"], Recorded(given["noise"]))
    compare_path(case, name, path)
    grid_is_theirs(case, name)


def check_ddim(case: Case, name: str, config: dict[str, Any], given: dict[str, Tensor]) -> None:
    """A step goes T // N indices down, which with trailing spacing is not always the next one."""
    kwargs, process = config["kwargs"], table(config)
    if kwargs.get("clip_sample", True):
        case.unclaimed(f"{name} clips x0 and keeps its noise")
    mixture = Mixture(process, given["w"], given["mu"], given["s"])
    solver, stride = (
        DDIM(eta=config.get("eta", 0.0)),
        process.count // config["num_inference_steps"],
    )
    last = -1.0 if kwargs.get("set_alpha_to_one", True) else 0.0
    keys = Recorded(given.get(f"{name}_noise", given["noise"][None]))
    path = [given["noise"]]
    for k, t in enumerate(case.expected[f"{name}_timesteps"].double()):
        below = t - stride if t >= stride else torch.full_like(t, last)
        state = DiffusionState(path[-1], t, k, Cond(), keys, mixture(path[-1], t, Cond()))
        path.append(solver.move(mixture, state, below).x)
    compare_path(case, name, path)
    grid_is_theirs(case, name)


def check_levels(
    case: Case, name: str, given: dict[str, Tensor], solver: Solver, own: Betas, process: Process
) -> None:
    """Schedulers that keep sigma / alpha, and x on the scale of `process`: VE, or the table's."""
    levels = case.expected[f"{name}_sigmas"].double()
    levels = levels[torch.cat([torch.ones(1, dtype=torch.bool), levels.diff() < 0])]
    times = process.time(-2 * levels.log())
    times = times.where(levels > 0, process.times[0])
    mixture = Mixture(own, given["w"], given["mu"], given["s"])
    start = given["noise"]
    if process == own:
        start = start / process.coeffs(times[0])[1]  # theirs is not scaled
    denoise = mixture if process == own else Along(mixture, process)
    compare_path(case, name, trajectory(denoise, solver, times, start, Recorded(start)))
    grid_is_theirs(case, name)


def table(config: dict[str, Any]) -> Betas:
    kwargs = config["kwargs"]
    names = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
    schedule = names[kwargs.get("beta_schedule", "linear")]
    ends = None if schedule == "cosine" else (kwargs["beta_start"], kwargs["beta_end"])
    return Betas(schedule=schedule, count=kwargs["num_train_timesteps"], ends=ends)


def grid_is_theirs(case: Case, name: str) -> None:
    """Their grids are the inputs here: ours have laws of their own."""
    for part in ("timesteps", "sigmas"):
        if f"{name}_{part}" in case.expected:
            case.omit(f"{name}_{part}", "used as the grid that both sides sample on")

"""The released SiT: its network, paths, conversions, losses, diffusion coefficients and samplers.

Its time runs from noise (0) to data (1): t here is 1 - theirs, and velocities change sign.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from golden_case import Case
from latents import Latents
from recorded import Recorded
from torch import Tensor, nn

from genvis.backbones.dit import DiT
from genvis.integrations.official import from_official
from genvis.objectives.weights import Constant, InTermsOf, Likelihood, Weight
from genvis.processes.denoiser import Denoiser, corrupt, like, solve, target
from genvis.processes.guidance import Guided
from genvis.processes.interpolants import GVP, VP, Linear
from genvis.processes.predictions import Noise, Score, SiTVelocity
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.diffusions import Decreasing, Diffusion, Power, Reverse, Sigma, Sine
from genvis.samplers.generate import run
from genvis.samplers.grids import Grid, Uniform
from genvis.samplers.solvers import Midpoint, Solver, slope
from genvis.samplers.stochastic import EulerMaruyama, StochasticHeun
from genvis.types import Cond, Denoise, Estimate, Prediction, Process

FORWARD, PATHS, SAMPLERS, LOOPS = (2e-5, 1e-4), (1e-5, 1e-4), (5e-4, 1e-3), (1e-4, 1e-3)
LAST = 0.04  # the released length of the last step of an SDE
PATH = {"Linear": Linear, "GVP": GVP, "VP": VP}
PREDICTION = {"velocity": SiTVelocity(), "score": Score(), "noise": Noise()}
# Euler on the velocity; ours of that name is exact in x0 and eps, and the same on the linear path
VELOCITY_EULER = EulerMaruyama(diffusion=Power(scale=0.0))
ODE_SOLVERS: dict[str, Solver] = {
    "euler": VELOCITY_EULER,
    "midpoint": Midpoint(),
}


def forms(norm: float) -> dict[str, Diffusion]:
    return {
        "constant": Power(scale=norm),
        "SBDM": Reverse(scale=norm),
        "sigma": Sigma(scale=norm),
        "linear": Power(scale=norm, exponent=1),
        "decreasing": Decreasing(scale=norm),
        "increasing-decreasing": Sine(scale=norm),
    }


def check(case: Case) -> None:
    if case.spec.get("cls") == "SiT":
        check_network(case)
    elif "toy_model" in case.spec:
        check_paths(case)
    else:
        case.unclaimed(f"class {case.spec.get('cls')}")


def sampled(
    denoise: Denoise, solver: Solver, times: Tensor, init: Tensor, cond: Cond, keys: Recorded
) -> Tensor:
    sampler = DiffusionSampler(
        denoise, Latents(), solver, times, tuple(init.shape[1:]), init.device
    )
    with torch.no_grad():
        return run(sampler, init, cond, keys)


# --- the network ---------------------------------------------------------------------------------


def check_network(case: Case) -> None:
    given, transport = case.tensors("in/"), case.spec["transport"]
    net = from_official("sit", case.tensors("state/"), case.spec["config"])
    assert isinstance(net, DiT)
    process = PATH[transport["path"]]()
    learned, kind = net.config.learned_variance, transport["prediction"]
    if kind == "velocity":
        denoise = Denoiser(net, process, SiTVelocity(learned_variance=learned))
    else:
        other = replace(PREDICTION[kind], time_scale=1.0, learned_variance=learned)
        denoise = Denoiser(FromNoise(net), process, other)

    def output(denoise: Denoise, x: Tensor, theirs: Tensor, cond: Cond) -> Tensor:
        t = 1 - theirs.double()
        with torch.no_grad():
            estimate = denoise(x, t, cond)
        return target(process, PREDICTION[kind], estimate.x0, estimate.eps, t)

    cond = Cond(label=given["y"])
    case.compare("velocity", output(denoise, given["x"], given["t"], cond), tolerance=FORWARD)
    n = len(given["cfg_x"]) // 2
    y, free_y = given["cfg_y"].split(n)
    cond = Cond(label=y, negative=Cond(label=free_y))
    guided = Guided(denoise, case.spec["cfg_scale"], channels=3)
    if "cfg_out" in case.expected:
        first = output(guided, given["cfg_x"][:n], given["cfg_t"][:n], cond)
        free = output(denoise, given["cfg_x"][:n], given["cfg_t"][n:], cond.dropped())
        second = torch.cat([first[:, :3], free[:, 3:]], dim=1)
        case.compare("cfg_out", torch.cat([first, second]), tolerance=FORWARD)
    init = given["init"][:n]  # upstream runs 2B rows and keeps the first B
    for name in sorted(case.expected):
        equation, *rest = name.split("_")
        if equation == "ode":
            method, points = rest
            if method not in ODE_SOLVERS:
                case.omit(name, f"{method} is not one of our solvers")
                continue
            times = ends(transport["path"], kind, False, int(points))
            found = sampled(guided, ODE_SOLVERS[method], times, init, cond, Recorded(init[None]))
        elif equation == "sde":
            found = sde(guided, *rest, init, cond, Recorded(given["sde_noises"][:, :n]))
        else:
            continue
        case.compare(name, found, case.expected[name][:n], tolerance=SAMPLERS)


def sde(
    denoise: Denoise, method: str, form: str, last: str, init: Tensor, cond: Cond, keys: Recorded
) -> Tensor:
    diffusion, steps = forms(1.0)[form], len(keys.noises)
    end = "noisy" if last == "None" else last.lower()
    solver: Solver = EulerMaruyama(diffusion=diffusion, last=end)
    if method == "heun":
        assert last == "Mean"
        solver = StochasticHeun(diffusion=diffusion)
    grid: Grid = Uniform() if last == "None" else Uniform(last=LAST)
    times = grid(denoise.process, steps + (last != "None"))
    return sampled(denoise, solver, times, init, cond, keys)


class FromNoise(nn.Module):
    """The network seen with our time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.net(x, 1 - t, cond)


# --- the paths -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Toy:
    """The toy network, whatever it predicts, as an estimate along a path."""

    process: Process
    prediction: Prediction
    a: float
    b: float

    def output(self, x: Tensor, t: Tensor) -> Tensor:
        theirs = like(1 - t, x)
        return self.a * x.tanh() * (1 + theirs) + self.b * torch.cos(3 * theirs + x)

    def evaluations(self, t: Tensor) -> int:
        return 1

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate:
        return Estimate(*solve(self.process, self.prediction, x, self.output(x, t), t))


def check_paths(case: Case) -> None:
    given, toy = case.tensors("in/"), case.spec["toy_model"]
    t = 1 - given["t"].double()
    x0, eps = given["x1"], given["x0"]
    for path, process_type in PATH.items():
        process = process_type()
        x = corrupt(process, x0, eps, t)
        for name, value in path_values(process, x0, eps, x, given["vector"], t).items():
            compare(case, f"{path}_{name}", value)
        for name, prediction in PREDICTION.items():
            denoise = Toy(process, prediction, toy["a"], toy["b"])
            estimate = denoise(x, t, Cond())
            score = -estimate.eps / like(process.coeffs(t)[1], x)
            compare(case, f"{path}_ode_drift_{name}", -slope(process, estimate, t))
            compare(case, f"{path}_score_{name}", score)
            error = denoise.output(x, t) - target(process, prediction, x0, eps, t)
            for weight, factor in weights(name).items():
                loss = factor(process, prediction, t) * error.square().flatten(1).mean(1)
                compare(case, f"{path}_loss_{name}_{weight}", loss.float())
            check_samplers(case, path, name, toy)


def compare(case: Case, name: str, value: Tensor, tolerance: tuple[float, float] = PATHS) -> None:
    if name in case.expected:
        case.compare(name, value, tolerance=tolerance)


def path_values(
    process: Process, x0: Tensor, eps: Tensor, x: Tensor, vector: Tensor, t: Tensor
) -> dict[str, Tensor]:
    (alpha, sigma), (d_alpha, d_sigma) = process.coeffs(t), process.rates(t)
    velocity, score = SiTVelocity(), Score()
    from_velocity = solve(process, velocity, x, vector, t)
    from_score = Estimate(*solve(process, score, x, vector, t))
    scalars = {
        "alpha": alpha,
        "sigma": sigma,
        "d_alpha": -d_alpha,
        "d_sigma": -d_sigma,
        "drift_var": Reverse()(process, t),
        **{f"diff_{form}": w(process, t) for form, w in forms(0.8).items()},
    }
    return {
        **{name: value.float().view(-1, 1, 1, 1) for name, value in scalars.items()},
        "xt": x,
        "ut": target(process, velocity, x0, eps, t),
        "drift_mean": like(d_alpha / alpha, x) * x,
        "score_from_velocity": -from_velocity[1] / like(sigma, x),
        "noise_from_velocity": from_velocity[1],
        "velocity_from_score": -slope(process, from_score, t),
    }


def weights(prediction: str) -> dict[str, Callable[..., Tensor]]:
    """Upstream counts errors of scores and noises in terms of the noise."""
    plain: Weight = Constant() if prediction == "velocity" else InTermsOf()
    return {
        "None": plain,
        "velocity": InTermsOf(prediction=SiTVelocity()),
        "likelihood": Likelihood(),
    }


def interval(path: str, prediction: str, sde: bool) -> tuple[float, float]:
    """Their default times [t0, t1] for sampling, where their divisions are safe."""
    eps = 0.0 if path != "VP" and prediction == "velocity" else 1e-3
    return 0.0 if path == "VP" else eps, 1 - LAST if sde else 1 - eps


def check_samplers(case: Case, path: str, prediction: str, toy: dict[str, float]) -> None:
    given, name = case.tensors("in/"), f"{path}_{prediction}"
    if any(key.startswith(name) and key.endswith("_interval") for key in case.expected):
        case.omit(f"{name}_*_interval", "upstream's default ends: inputs here, as process.ends")
    init, cond = given["init"], Cond(label=torch.zeros(len(given["init"]), dtype=torch.int64))
    for key in (key for key in case.expected if key.startswith(f"{name}_ode_euler_")):
        times = ends(path, prediction, False, int(key.rpartition("_")[2]))
        found = walked(
            path, prediction, toy, VELOCITY_EULER, times, init, cond, given["sde_noises"]
        )
        compare(case, key, found, LOOPS)
    key = f"{name}_sde_sigma_Mean"
    if key in case.expected:
        times = ends(path, prediction, True, len(given["sde_noises"]) + 1)
        times = torch.cat([times, times[-1:] - LAST])
        solver = EulerMaruyama(diffusion=Sigma())
        found = walked(path, prediction, toy, solver, times, init, cond, given["sde_noises"])
        compare(case, key, found, LOOPS)


def ends(path: str, prediction: str, sde: bool, points: int) -> Tensor:
    begin, end = interval(path, prediction, sde)
    return 1 - torch.linspace(begin, end, points, dtype=torch.float64)


def walked(
    path: str, prediction: str, toy: dict[str, float], solver: Solver, times: Tensor,
    init: Tensor, cond: Cond, noises: Tensor,
) -> Tensor:  # fmt: skip
    process = PATH[path](ends=(max(times[-1].item(), 0.0), times[0].item()))
    denoise = Toy(process, PREDICTION[prediction], toy["a"], toy["b"])
    begin = init / like(process.coeffs(times[0])[1], init)  # theirs starts at init itself
    return sampled(denoise, solver, times, begin, cond, Recorded(noises))

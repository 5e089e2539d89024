"""What a scheduler of diffusers says of a network: its path, what its output means, where x0 ends.

A scheduler mixes four things that are apart here: the process and the prediction (read by
`schedule_of`, and all that a denoiser needs), the time grid (`Schedule.times`), and the solver,
which is ours to choose. Its other options change the solver or the grid alone.
Sources: the papers of the processes and predictions; released code for its time conventions.
Letters: N betas; s = sigma / alpha; timestep is what diffusers gives to a network.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genvis.integrations.diffusers_models import diffusers_class
from genvis.processes.betas import Betas
from genvis.processes.interpolants import Linear
from genvis.processes.predictions import EDM, Clean, Noise, V, Velocity
from genvis.processes.ve import VE
from genvis.samplers.grids import Grid, Karras, Respaced, Shifted
from genvis.types import Prediction, Process


@dataclass(frozen=True)
class Schedule(ABC):
    """clip: the bound on x0, None where the scheduler has none; grid: ours that is most like it."""

    process: Process
    prediction: Prediction
    clip: float | None
    grid: Grid

    @abstractmethod
    def time(self, timestep: Tensor) -> Tensor:
        """The process's t of a timestep; float64, shaped like it."""

    @abstractmethod
    def times(self, scheduler: Any) -> Tensor:
        """The grid a scheduler has after `set_timesteps`, as one of ours: falling, (steps + 1,)."""


class TableSchedule(Schedule):
    def time(self, timestep: Tensor) -> Tensor:
        return timestep.double()

    def times(self, scheduler: Any) -> Tensor:
        clean = self.process.times[0]
        if hasattr(scheduler, "sigmas"):
            levels = _falling(scheduler.sigmas)
            times = self.process.time(-2 * levels.log())
            return torch.where(levels > 0, times, clean)
        last = clean if scheduler.config.get("set_alpha_to_one", True) else 0.0
        return _falling(torch.cat([scheduler.timesteps.double().cpu(), torch.tensor([last])]))


class FlowSchedule(Schedule):
    def time(self, timestep: Tensor) -> Tensor:
        assert isinstance(self.prediction, Velocity)
        return timestep.double() / self.prediction.time_scale

    def times(self, scheduler: Any) -> Tensor:
        return _falling(scheduler.sigmas)


class EDMSchedule(Schedule):
    def time(self, timestep: Tensor) -> Tensor:
        return torch.exp(4 * timestep.double())

    def times(self, scheduler: Any) -> Tensor:
        return _falling(scheduler.sigmas)


def schedule_of(scheduler: Any) -> Schedule:
    """From a scheduler. ValueError names the class or the option that has no counterpart here."""
    name = type(scheduler).__name__
    if name not in SCHEDULERS:
        raise ValueError(f"{name} has no counterpart here; these have: {', '.join(SCHEDULERS)}")
    found: Schedule = SCHEDULERS[name](name, scheduler.config)
    return found


def scheduler_from(config: Mapping[str, Any]) -> Any:
    """A scheduler from the content of `scheduler_config.json`: defaults depend on its class."""
    name = str(config.get("_class_name"))
    if name not in SCHEDULERS:
        raise ValueError(f"{name} has no counterpart here; these have: {', '.join(SCHEDULERS)}")
    return diffusers_class(name).from_config(dict(config))


def _table(name: str, config: Mapping[str, Any]) -> Schedule:
    if config.get("use_flow_sigmas"):
        _expect(name, config, prediction_type="flow_prediction")
        return _flow(name, {"shift": config["flow_shift"], **config})
    _expect(name, config, trained_betas=None, rescale_betas_zero_snr=False, thresholding=False)
    _expect(name, config, timestep_type="discrete", interpolation_type="linear")
    count, kind = config["num_train_timesteps"], config["beta_schedule"]
    schedule = _choose(name, "beta_schedule", kind, BETAS)
    ends = None if schedule == "cosine" else (config["beta_start"], config["beta_end"])
    prediction = _choose(name, "prediction_type", config["prediction_type"], PREDICTIONS)
    if config.get("variance_type") == "learned":
        raise ValueError(f"{name}: variance_type learned; 'learned_range' is the one that is here")
    return TableSchedule(
        process=Betas(schedule=schedule, count=count, ends=ends),
        prediction=prediction(time_scale=float(count)),
        clip=config["clip_sample_range"] if config.get("clip_sample") else None,
        grid=Respaced(),
    )


def _flow(name: str, config: Mapping[str, Any]) -> Schedule:
    _expect(name, config, invert_sigmas=False)
    return FlowSchedule(
        process=Linear(),
        prediction=Velocity(time_scale=float(config["num_train_timesteps"])),
        clip=None,
        grid=Shifted(shift=float(config["shift"])),
    )


def _edm(name: str, config: Mapping[str, Any]) -> Schedule:
    _expect(name, config, prediction_type="epsilon", thresholding=False)  # their name for F
    low, high = config["sigma_min"], config["sigma_max"]
    return EDMSchedule(
        process=VE(sigma_min=low, sigma_max=high),
        prediction=EDM(sigma_data=config["sigma_data"]),
        clip=None,
        grid=Karras(sigma_min=low, sigma_max=high, rho=config["rho"]),
    )


SCHEDULERS: dict[str, Callable[[str, Mapping[str, Any]], Schedule]] = {
    **dict.fromkeys(
        (
            "DDIMScheduler",
            "DDPMScheduler",
            "PNDMScheduler",
            "LMSDiscreteScheduler",
            "EulerDiscreteScheduler",
            "EulerAncestralDiscreteScheduler",
            "HeunDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "DEISMultistepScheduler",
            "UniPCMultistepScheduler",
        ),
        _table,
    ),
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": _flow,
    "EDMEulerScheduler": _edm,
    "EDMDPMSolverMultistepScheduler": _edm,
}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": Noise, "sample": Clean, "v_prediction": V}


def _choose(name: str, option: str, value: str, table: Mapping[str, Any]) -> Any:
    if value not in table:
        raise ValueError(f"{name}: {option} must be one of {', '.join(table)}, got {value!r}")
    return table[value]


def _expect(name: str, config: Mapping[str, Any], **wanted: Any) -> None:
    for option, value in wanted.items():
        if (given := config.get(option, value)) != value:
            raise ValueError(f"{name}: {option} must be {value!r}, got {given!r}")


def _falling(values: Tensor) -> Tensor:
    """Without repetitions, which solvers of two calls a step have; float64, on the CPU."""
    values = values.double().cpu()
    return values[torch.cat([torch.ones(1, dtype=torch.bool), values.diff() < 0])]

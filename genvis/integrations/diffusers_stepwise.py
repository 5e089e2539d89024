"""The network, scheduler and auto-encoder of a diffusers pipeline under our own solvers: a sampler
that a search can look into, fork and steer at every step.

Sources: those of `diffusers_networks`; Esser et al. 2024, section 5.3.2, for times that shift with
the number of tokens.
"""

import copy
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from genvis.config import config
from genvis.integrations.diffusers_backbone import NETWORKS, DiffusersNet
from genvis.integrations.diffusers_generator import prediction_of
from genvis.integrations.diffusers_networks import (
    PROMPTED,
    PromptedNet,
    Told,
    kind_of,
    network_name,
)
from genvis.integrations.diffusers_scheduler import Schedule, schedule_of
from genvis.integrations.diffusers_tokenizer import AUTOENCODERS, DiffusersTokenizer
from genvis.processes.denoiser import Denoiser
from genvis.processes.guidance import Clipped, Guided
from genvis.samplers import GRIDS, SOLVERS
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.grids import Grid
from genvis.samplers.solvers import Euler, Solver
from genvis.tokenizers.pixels import Pixels, PixelsConfig
from genvis.types import Cond, Denoise, Tokenizer


@config
class Stepwise:
    """How a pipeline's network is sampled.

    guidance_scale: classifier-free, against cond.negative; distilled: the scale that a network like
    FLUX.1 dev, which guidance was distilled into, is told. Height and width are pixels, None the
    network's own; a network without prompts has one size. grid None is the scheduler's own times.
    """

    kind: ClassVar[str] = "pipeline"
    solver: Annotated[Solver, SOLVERS] = Euler()
    grid: Annotated[Grid, GRIDS] | None = None
    steps: int = 30
    guidance_scale: float = 1.0
    distilled: float = 3.5
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def build(self, pipeline: Any, cond: Cond | None = None) -> DiffusionSampler:
        """A sampler for any conditions of the pipeline; `cond` says nothing that it does not.

        pipeline: all that is read of it are its unet or transformer, scheduler and vae, if any.
        ValueError names what has no counterpart here.
        """
        model, vae = getattr(pipeline, network_name(pipeline)), _vae(pipeline)
        net, schedule = self._net(pipeline, model, vae), schedule_of(pipeline.scheduler)
        prediction = prediction_of(schedule, net.learned_variance)
        denoise: Denoise = Denoiser(net, schedule.process, prediction)
        if self.guidance_scale != 1:
            denoise = Guided(denoise, self.guidance_scale)
        return DiffusionSampler(
            denoise=denoise if schedule.clip is None else Clipped(denoise, schedule.clip),
            tokenizer=_tokenizer(vae, net.shape[0]),
            solver=self.solver,
            times=self._times(pipeline.scheduler, schedule, net),
            noise_shape=net.shape,
            device=next(model.parameters()).device,
        )

    def _net(self, pipeline: Any, model: Any, vae: Any) -> PromptedNet | DiffusersNet:
        name = kind_of(model)
        if name not in (*PROMPTED, *NETWORKS):
            raise ValueError(
                f"a {name} has no counterpart here; these have: {', '.join((*PROMPTED, *NETWORKS))}"
            )
        if name in PROMPTED:
            cells, factor = model.config.get("sample_size"), _factor(vae)
            cells = cells or pipeline.default_sample_size
            rows, columns = (cells, cells) if isinstance(cells, int) else cells
            size = self.height or rows * factor, self.width or columns * factor
            return PROMPTED[name](model, Told(size, factor, self.distilled))
        if self.height or self.width:
            raise ValueError(f"height and width cannot be chosen: a {name} has one size here")
        return DiffusersNet.of(model)

    def _times(self, scheduler: Any, schedule: Schedule, net: PromptedNet | DiffusersNet) -> Tensor:
        if self.grid is not None:
            return self.grid(schedule.process, self.steps)
        own = copy.deepcopy(scheduler)
        asked = net.timing(own.config, self.steps) if isinstance(net, PromptedNet) else {}
        own.set_timesteps(self.steps, **asked)
        return schedule.times(own)


def _vae(pipeline: Any) -> Any:
    """The auto-encoder, None for a pipeline of pixels."""
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        return None
    if (name := type(vae).__name__) not in AUTOENCODERS:
        raise ValueError(f"its vae must be a {' or a '.join(AUTOENCODERS)}, got a {name}")
    if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
        raise ValueError("this vae overflows in float16: pipeline.vae.to(torch.float32) first")
    return vae


def _factor(vae: Any) -> int:
    """Pixels a side of a latent."""
    if vae is None:
        return 1
    widths = vae.config.get("encoder_block_out_channels") or vae.config.block_out_channels
    return 2 ** (len(widths) - 1)


def _tokenizer(vae: Any, channels: int) -> Tokenizer:
    if vae is None:
        return Pixels(PixelsConfig(channels=channels))
    return DiffusersTokenizer(None, vae).to(vae.device)

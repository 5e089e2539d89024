"""Search over the images of a diffusers pipeline: its whole loop as a sampler of one step.

    cond = conditions(pipeline, ["a red cube", "two cats"])
    whole = Whole(steps=20, guidance_scale=5.0).build(pipeline, cond)  # to search its noise
    stepwise = Stepwise(steps=20, guidance_scale=5.0).build(pipeline, cond)  # and along the way

Source: Ma et al. 2025, "Inference-time Scaling for Diffusion Models beyond Scaling Denoising
Steps" (searching the noise needs nothing of a model but noise in and images out).
Letters: B rows, C channels, h w size of the latents.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from genvis.config import check_arguments, config
from genvis.devices import processes
from genvis.integrations.diffusers_models import diffusers_class, load_pipeline
from genvis.integrations.diffusers_networks import network_name
from genvis.integrations.diffusers_prompts import arguments, conditions
from genvis.integrations.diffusers_stepwise import Stepwise
from genvis.random import HashKeys, Keys
from genvis.types import Cond, Cost, Sampler, take, to

OUTPUTS = "diffusers.models.modeling_outputs"
NAMED = {  # fields of `Whole`
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "height": "height",
    "width": "width",
}
SEARCHED = (  # what a search gives, row by row
    *("latents", "generator", "output_type", "return_dict", "batch_size", "num_images_per_prompt"),
    *("prompt", "negative_prompt", "class_labels"),
)


@config
class Whole:
    """How a pipeline is called. What is None is left to the pipeline.

    guidance_scale is what the pipeline means by it: for FLUX.1 the one it was distilled with, whose
    `true_cfg_scale` goes, like any other argument, into `call`.
    """

    kind: ClassVar[str] = "pipeline"
    steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None  # pixels
    width: int | None = None
    call: dict[str, int | float | str | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := [name for name in (*SEARCHED, *NAMED.values()) if name in self.call]:
            raise ValueError(
                f"call must not give {', '.join(taken)}, which the search or other fields do"
            )
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def build(self, pipeline: Any, cond: Cond) -> "PipelineSampler":
        """A sampler for conditions like `cond`, with whose first row the pipeline is asked what it
        does. ValueError if its images are no function of noise, conditions and keys.
        """
        given = {theirs: getattr(self, ours) for ours, theirs in NAMED.items()}
        call = {name: value for name, value in given.items() if value is not None} | self.call
        kind, known = type(pipeline).__name__, inspect.signature(pipeline.__call__).parameters
        if "latents" not in known or not hasattr(pipeline, "prepare_latents"):
            raise ValueError(
                f"a {kind} takes no latents, so its noise cannot be searched: search its network "
                "by our solvers instead (`Stepwise`)"
            )
        check_arguments([*call, *arguments(pipeline, cond)], known, kind)
        own = copy.copy(pipeline)  # the caller's scheduler and progress bar stay as they are
        own.scheduler = copy.deepcopy(pipeline.scheduler)
        own.set_progress_bar_config(disable=True)
        return PipelineSampler(own, call, _ask(own, call, take(cond, slice(1))))


@dataclass(frozen=True)
class Asked:
    """What a pipeline does for an image: the latents it starts from, (1, ...); evaluations of its
    network; whether its scheduler draws noise on the way.
    """

    latents: Tensor
    evaluations: int
    stochastic: bool


@dataclass(frozen=True)
class PipelineState:
    """noise (B, ...) standard normal; images (B, 3, H, W) once they are made, which is step 0."""

    noise: Tensor
    cond: Cond
    keys: Keys
    k: int = 0
    images: Tensor | None = None


@dataclass(frozen=True)
class PipelineSampler:
    """Noise has the pipeline's own shape: (C, h, w), or packed (tokens, width) for FLUX.1.

    It is standard normal: what a scheduler wants it multiplied by is the pipeline's to do. Rows
    have random generators of their own, from their keys, for schedulers that draw.
    """

    pipeline: Any
    call: Mapping[str, Any]
    asked: Asked

    @property
    def num_steps(self) -> int:
        return 1

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return tuple(self.asked.latents.shape[1:])

    @property
    def stochastic(self) -> bool:
        return self.asked.stochastic

    @property
    def device(self) -> torch.device:
        return self.asked.latents.device

    def init(self, noise: Tensor, cond: Cond, keys: Keys) -> PipelineState:
        if tuple(noise.shape[1:]) != self.noise_shape:
            raise ValueError(f"noise must be (B, *{self.noise_shape}), got {tuple(noise.shape)}")
        if len(cond) != len(noise):
            raise ValueError(
                f"noise and cond must have the same rows, got {len(noise)} and {len(cond)}"
            )
        return PipelineState(noise, cond, keys)

    @torch.no_grad()
    def look(self, state: PipelineState) -> PipelineState:
        if state.images is not None:
            return state
        images = self.pipeline(
            latents=state.noise.to(self.asked.latents),
            generator=_generators(state.keys),
            output_type="pt",
            **self.call,
            **arguments(self.pipeline, state.cond),
        ).images
        return replace(state, images=2 * images.float() - 1)

    def step(self, state: PipelineState) -> PipelineState:
        if state.k == 1:
            raise ValueError("the state has already made its 1 step")
        return replace(self.look(state), k=1)

    def preview(self, state: PipelineState) -> Tensor:
        if state.images is None:
            raise ValueError("preview needs what `look` keeps: call look(state) first")
        return state.images

    def rekey(self, state: PipelineState, keys: Keys) -> PipelineState:
        if not self.stochastic or state.images is not None:
            scheduler = type(self.pipeline.scheduler).__name__
            raise ValueError(
                f"nothing ahead in the one step of {scheduler} is random: copies can never diverge"
            )
        return replace(state, keys=keys)

    def cost(self, k: int) -> Cost:
        return Cost(evaluations=self.asked.evaluations)


def pipeline_sampler(
    source: Any,
    how: Whole | Stepwise,
    about: Sequence[str] | Sequence[int],
    negative: str | None = None,
) -> tuple[Sampler, Cond]:
    """A sampler, and the conditions that it is to be given: one row for every prompt, or for every
    class number, in `about`.

    source: the folder of a pipeline, or one at hand, which stays on its device.
    """
    if isinstance(source, str | Path):
        source = load_pipeline(source).to(processes().device)
    if all(isinstance(row, str) for row in about):
        call = how.call if isinstance(how, Whole) else None
        cond = conditions(source, [str(row) for row in about], negative, call)
    else:
        cond = Cond(label=torch.tensor(list(about), dtype=torch.int64))
    return how.build(source, cond), cond


@torch.no_grad()
def _ask(pipeline: Any, call: Mapping[str, Any], cond: Cond) -> Asked:
    """By one image made with a network that counts its rows and answers zero."""
    dry, kind = copy.copy(pipeline), type(pipeline).__name__
    network = getattr(pipeline, name := network_name(pipeline))
    generator = _generators(HashKeys.of(0, [0]))[0]
    started: list[tuple[Tensor, Tensor]] = []  # latents, and the generator's state after them
    rows: list[int] = []
    output = diffusers_class("Transformer2DModelOutput", OUTPUTS)
    channels = network.config.get("out_channels")

    def prepare_latents(*args: Any, **given: Any) -> Any:
        made = pipeline.prepare_latents(*args, **given)
        latents = made[0] if isinstance(made, tuple) else made
        started.append((latents, generator.get_state()))
        return made

    def answer(_: Any, *args: Any, **given: Any) -> Any:
        x = next(iter((*args, *given.values())))  # one tensor, or one for every row
        rows.append(len(x))
        if isinstance(x, Tensor) and x.ndim == 4 and channels:  # may come back with a variance
            return output(sample=x.new_zeros(len(x), channels, *x.shape[2:]))
        return output(sample=0 * x if isinstance(x, Tensor) else [0 * row for row in x])

    counting = copy.copy(network)
    counting.__class__ = type("Counting", (type(network),), {"__call__": answer})
    vars(dry).update({name: counting, "prepare_latents": prepare_latents})
    unseeded = _global_numbers(pipeline)
    one = arguments(dry, to(cond, pipeline._execution_device))
    made = dry(generator=[generator], output_type="pt", **call, **one)
    if not hasattr(made, "images"):
        raise ValueError(f"a {kind} makes no images")
    if not torch.equal(unseeded, _global_numbers(pipeline)):
        raise ValueError(
            f"a {kind} with this {type(pipeline.scheduler).__name__} draws numbers that no "
            "generator gives it, so its images are no function of their keys: choose another "
            "scheduler or its network by our solvers (`Stepwise`)"
        )
    latents, state = started[0]
    return Asked(latents, sum(rows), not torch.equal(state, generator.get_state()))


def _generators(keys: Keys) -> list[torch.Generator]:
    """On the CPU, so that their numbers are the same for every device."""
    seeds = (keys.fold("pipeline").uniform() * 2.0**53).long().tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _global_numbers(pipeline: Any) -> Tensor:
    """Where torch's own random numbers stand, on the CPU and on the pipeline's device."""
    states = [torch.get_rng_state()]
    if (device := pipeline._execution_device).type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)

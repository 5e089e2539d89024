"""Searching with pipelines of diffusers: their whole loops, and their networks step by step."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genvis.config import ConfigError, build
from genvis.integrations.diffusers_maker import PipelineSource
from genvis.integrations.diffusers_networks import PixArtNet, Told, network_name
from genvis.integrations.diffusers_prompts import conditions
from genvis.integrations.diffusers_search import Whole, pipeline_sampler
from genvis.integrations.diffusers_stepwise import Stepwise
from genvis.random import HashKeys
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.generate import generate, labelled, price, run
from genvis.samplers.solvers import DPMSolverPP2M, Euler
from genvis.samplers.stochastic import DDIM
from genvis.search.best_of_n import BestOfN
from genvis.search.ledger import Ledger
from genvis.search.result import SearchResult
from genvis.search.study import Study
from genvis.types import Cond, Cost, repeat, take
from tests.pipelines import (
    KINDS,
    LENGTH,
    NETWORKS,
    PIXELS,
    STEPS,
    consistency,
    encoded,
    kl,
    noisy,
    parts,
    pipeline,
)

diffusers = pytest.importorskip("diffusers")

SCALE = 3.0
PIXEL_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}
SOLVERS = {"pixart": DPMSolverPP2M(), "sana": DPMSolverPP2M()}  # of the others, Euler


def stepwise(kind: str, **other: Any) -> Stepwise:
    size = {"height": PIXELS, "width": PIXELS + 8}
    given = {"solver": SOLVERS.get(kind, Euler()), "steps": STEPS, "guidance_scale": SCALE, **size}
    return Stepwise(**{**given, **other})


def started(sampler: DiffusionSampler, cond: Cond, seed: int = 3) -> Any:
    """A state from what the schedulers of diffusers start from: noise of standard deviation 1."""
    keys = HashKeys.of(seed, range(len(cond)))
    noise = keys.normal(sampler.noise_shape)
    return replace(sampler.init(noise, cond, keys), x=noise)


def finished(sampler: DiffusionSampler, state: Any) -> Any:
    while state.k < sampler.num_steps:
        state = sampler.step(state)
    return state


# the network and scheduler alone, called as the pipelines call them


def called(kind: str, net: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    text, rows = cond.text, len(x)
    sizes = torch.tensor([[PIXELS, PIXELS + 8, 0, 0, PIXELS, PIXELS + 8]] * rows)
    if kind == "sd":
        return net(x, t, encoder_hidden_states=text).sample
    if kind == "sdxl":
        added = {"text_embeds": cond.pooled, "time_ids": sizes.float()}
        return net(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
    if kind == "sd3":
        return net(
            hidden_states=x,
            timestep=t.expand(rows),
            encoder_hidden_states=text,
            pooled_projections=cond.pooled,
        ).sample
    if kind == "flux":
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        out = net(
            hidden_states=F.unfold(x, 2, stride=2).transpose(1, 2),
            timestep=t.expand(rows) / 1000,
            guidance=torch.full((rows,), 3.5),
            encoder_hidden_states=text,
            pooled_projections=cond.pooled,
            img_ids=torch.tensor([[0.0, i, j] for i in range(h) for j in range(w)]),
            txt_ids=torch.zeros(text.shape[1], 3),
        ).sample
        return F.fold(out.transpose(1, 2), x.shape[-2:], 2, stride=2)
    masked = {"encoder_hidden_states": text, "encoder_attention_mask": cond.text_mask.long()}
    if kind == "pixart":
        none = {"resolution": None, "aspect_ratio": None}
        return net(x, timestep=t.expand(rows), added_cond_kwargs=none, **masked).sample[:, :4]
    return net(x, timestep=t.expand(rows), **masked).sample


def asked(kind: str, scheduler: Any, steps: int) -> None:
    """As the pipelines ask: FLUX.1 shifts by the number of its tokens, here 4 x 6."""
    if kind == "flux":
        shift = 0.5 + (24 - 256) * (1.15 - 0.5) / (4096 - 256)
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], mu=shift)
    else:
        scheduler.set_timesteps(steps)


@torch.no_grad()
def looped(kind: str, own: Any, x: Tensor, cond: Cond) -> tuple[Tensor, list[Tensor]]:
    """diffusers' own loop with guidance: the last latents, and x0 where the scheduler says it."""
    net, found = getattr(own, network_name(own)), []
    asked(kind, own.scheduler, STEPS)
    assert cond.negative is not None
    x, times = x * getattr(own.scheduler, "init_noise_sigma", 1.0), own.scheduler.timesteps
    if own.scheduler.config.get("use_flow_sigmas"):
        times = 1000 * own.scheduler.sigmas  # which that scheduler rounds down
    for t, exact in zip(own.scheduler.timesteps, times, strict=False):
        seen = x
        if hasattr(own.scheduler, "scale_model_input"):
            seen = own.scheduler.scale_model_input(x, t)
        given, other = (called(kind, net, seen, exact, c) for c in (cond, cond.negative))
        moved = own.scheduler.step(other + SCALE * (given - other), t, x)
        if "pred_original_sample" in moved:
            found.append(moved.pred_original_sample)
        x = moved.prev_sample
    return x, found


@pytest.mark.parametrize("kind", KINDS)
def test_our_solvers_on_a_network_follow_its_pipelines_loop(kind: str) -> None:
    own, cond = parts(kind), encoded(kind, 2)
    sampler = stepwise(kind).build(own)
    assert sampler.noise_shape == (4, PIXELS // 2, PIXELS // 2 + 4)
    assert sampler.num_steps == STEPS
    state = started(sampler, cond)
    theirs, x0 = looped(kind, own, state.x, cond)
    for k, estimate in enumerate(x0):
        state = sampler.look(state)
        torch.testing.assert_close(state.kept.x0, estimate, rtol=1e-4, atol=1e-4, msg=f"step {k}")
        state = sampler.step(state)
    assert len(x0) == (STEPS if kind in ("sd", "sdxl") else 0)
    ours = finished(sampler, state)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours.x, theirs, rtol=1e-4, atol=1e-4)
    images = sampler.preview(ours)
    assert images.shape == (2, 3, PIXELS, PIXELS + 8)
    assert images.abs().max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_followed_whatever_is_beside_it(kind: str) -> None:
    own, cond = parts(kind), encoded(kind, 3)
    sampler = stepwise(kind).build(own)
    state = started(sampler, cond)
    whole = finished(sampler, state).x
    alone = finished(sampler, take(state, slice(1, 2))).x
    torch.testing.assert_close(alone, whole[1:2], rtol=1e-4, atol=1e-4)
    swapped = replace(state, cond=take(cond, torch.tensor([1, 0, 2])))
    moved = (finished(sampler, swapped).x - whole).flatten(1).norm(dim=1)
    assert (moved[:2] > 1e-3).all()
    assert moved[2] < 1e-4


def test_children_of_a_state_come_apart() -> None:
    own, cond = parts("sd"), encoded("sd", 2)
    sampler = stepwise("sd", solver=DDIM(eta=1.0), steps=3).build(own)
    state = sampler.step(started(sampler, cond))
    keys = HashKeys.of(1, range(2)).split(2)
    children = sampler.rekey(repeat(state, 2), keys)
    assert torch.equal(children.x[0], children.x[1])
    ends = finished(sampler, children).x
    assert (ends[0::2] - ends[1::2]).flatten(1).norm(dim=1).min() > 0.1
    again = sampler.rekey(take(state, torch.tensor([1])), take(keys, slice(3, 4)))
    torch.testing.assert_close(finished(sampler, again).x, ends[3:], rtol=1e-4, atol=1e-4)


def test_the_large_pixart_sees_sizes() -> None:
    name, arguments = NETWORKS["pixart"]
    wide = {"attention_head_dim": 12, "cross_attention_dim": 24, "use_additional_conditions": True}
    net = noisy(getattr(diffusers, name)(**{**arguments, **wide}), 0.1)
    cond, x, t = encoded("pixart", 2), torch.ones(2, 4, 8, 12), torch.tensor([500.0, 500.0])
    ours = PixArtNet(net, Told((16, 24), 2, 1.0))(x, t, cond)
    shape = {"resolution": [[16.0, 24.0]] * 2, "aspect_ratio": [[16 / 24]] * 2}
    theirs = net(
        x,
        timestep=t,
        encoder_hidden_states=cond.text,
        encoder_attention_mask=cond.text_mask,
        added_cond_kwargs={name: torch.tensor(value) for name, value in shape.items()},
    ).sample
    torch.testing.assert_close(ours, theirs)
    other = PixArtNet(net, Told((32, 24), 2, 1.0))(x, t, cond)
    assert not torch.allclose(ours, other, atol=1e-4)


def test_what_a_network_cannot_be_told_is_refused() -> None:
    own, cond = parts("sd3"), encoded("sd3", 1)
    sampler = stepwise("sd3").build(own)
    keys, noise = HashKeys.of(0, [0]), torch.zeros(1, *sampler.noise_shape)
    for given, why in (
        (replace(cond, negative=None), r"drops to cond\.negative, which is missing"),
        (replace(cond, text=None), r"cond\.text is missing: encode the prompts first"),
        (replace(cond, pooled=None), r"cond\.pooled is missing"),
    ):
        with pytest.raises(ValueError, match=why):
            sampler.step(sampler.init(noise, given, keys))
    with pytest.raises(ValueError, match=r"must be multiples of 4 for a SD3Transf.* got \(18, 16"):
        stepwise("sd3", height=18, width=16).build(own)
    own.vae.to(torch.float16)
    own.vae.register_to_config(force_upcast=True)
    with pytest.raises(ValueError, match="overflows in float16"):
        stepwise("sd3").build(own)
    own.vae = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="its vae must be a AutoencoderKL or a AutoencoderDC, got"):
        stepwise("sd3").build(own)
    own.vae = None
    own.transformer = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="a Linear has no counterpart here; these have: UNet2DC"):
        stepwise("sd3").build(own)
    lcm = diffusers.UNet2DConditionModel(**NETWORKS["sd"][1], time_cond_proj_dim=8)
    with pytest.raises(ValueError, match="time_cond_proj_dim 8: `Cond` has nothing for it"):
        stepwise("sd").build(SimpleNamespace(**{**vars(parts("sd")), "unet": lcm}))


def test_a_compiled_network_is_the_same_network() -> None:
    own, cond = parts("sd3"), encoded("sd3", 2)
    plain = stepwise("sd3", steps=2).build(own)
    own.transformer = torch.compile(own.transformer, backend="eager")
    compiled = stepwise("sd3", steps=2).build(own)
    state = started(plain, cond)
    ours = finished(compiled, state).x
    torch.testing.assert_close(ours, finished(plain, state).x, rtol=1e-5, atol=1e-5)


# pipelines whose noise cannot be given: their networks step by step


def dit_pipeline() -> Any:
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        sample_size=8, in_channels=4, out_channels=8, num_layers=1, num_attention_heads=2,
        attention_head_dim=8, num_embeds_ada_norm=1000,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    return diffusers.DiTPipeline(noisy(net, 0.1), kl(), scheduler)


def test_dit_step_by_step_is_its_pipeline() -> None:
    pipe, labels = dit_pipeline(), [3, 999]
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(7)
    told = {"guidance_scale": SCALE, "num_inference_steps": STEPS, "output_type": "pt"}
    theirs = pipe(labels, generator=seed, **told).images
    sampler, cond = pipeline_sampler(pipe, Stepwise(steps=STEPS, guidance_scale=SCALE), labels)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    state = replace(sampler.init(noise, cond, HashKeys.of(0, range(2))), x=noise)
    ours = sampler.preview(finished(sampler, state))
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=1e-4, atol=1e-4)
    assert sampler.cost(0).evaluations == 2
    with pytest.raises(ValueError, match="height and width cannot be chosen: a DiTTransformer2D"):
        Stepwise(height=16).build(pipe)


def test_a_pipeline_of_pixels_step_by_step() -> None:
    net = noisy(diffusers.UNet2DModel(**PIXEL_UNET))
    pipe = diffusers.DDIMPipeline(net, diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    told = {"use_clipped_model_output": True, "output_type": "np"}
    seed = torch.Generator().manual_seed(7)
    theirs = pipe(2, generator=seed, num_inference_steps=STEPS, **told).images
    sampler = Stepwise(steps=STEPS).build(pipe)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    state = sampler.init(noise, labelled(0, range(2)), HashKeys.of(0, range(2)))
    ours = sampler.preview(finished(sampler, replace(state, x=noise)))
    torch.testing.assert_close(
        ours / 2 + 0.5, torch.from_numpy(theirs).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["DiTPipeline", "DDIMPipeline", "DDPMPipeline"])
def test_noise_that_cannot_be_given_is_not_searched(name: str) -> None:
    pipe: Any = dit_pipeline()
    if name != "DiTPipeline":
        net = diffusers.UNet2DModel(**PIXEL_UNET)
        pipe = getattr(diffusers, name)(net, diffusers.DDPMScheduler())
    why = f"a {name} takes no latents, so its noise cannot be searched: search its network by our"
    with pytest.raises(ValueError, match=why):
        Whole().build(pipe, Cond(label=torch.tensor([1])))


# a whole pipeline as one step


@dataclass(frozen=True)
class Bright:
    """A toy verifier."""

    name: str = "bright"

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        return images.mean(dim=(1, 2, 3))


class Rows:
    """Counts the rows that go through a module."""

    def __init__(self, module: Any) -> None:
        self.seen = 0
        module.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, given: Any) -> None:
        self.seen += len(next(iter((*args, *given.values()))))


LABELS = Cond(label=torch.tensor([0, 3, 1]))
KEYS = HashKeys.of(5, range(3)).fold("sample")


def by_hand(pipe: Any, noise: Tensor, **call: Any) -> Tensor:
    """A plain call of the pipeline, whose scheduler draws nothing."""
    images = pipe(latents=noise, output_type="pt", **call).images
    return 2 * images - 1


def test_one_step_of_a_whole_pipeline_is_a_plain_call() -> None:
    pipe = consistency()
    rows = Rows(pipe.unet)
    sampler = Whole(steps=1).build(pipe, LABELS)
    assert rows.seen == 0  # it is asked without its network
    assert sampler.noise_shape == (3, 8, 8)
    assert not sampler.stochastic
    noise = KEYS.normal(sampler.noise_shape)
    images = run(sampler, noise, LABELS, KEYS)
    assert rows.seen == 3 * price(sampler).evaluations == 3
    pipe.set_progress_bar_config(disable=True)
    plain = by_hand(pipe, noise, batch_size=3, class_labels=[0, 3, 1])
    assert torch.equal(images, plain)
    assert images.std() > 0.01
    state = sampler.init(noise, LABELS, KEYS)
    with pytest.raises(ValueError, match="call look"):
        sampler.preview(state)
    with pytest.raises(ValueError, match=r"nothing ahead in the one step of CMStoch.* is random"):
        sampler.rekey(state, KEYS)
    looked = sampler.look(state)
    assert torch.equal(sampler.preview(looked), images)
    assert sampler.step(looked).images is looked.images
    with pytest.raises(ValueError, match="already made its 1 step"):
        sampler.step(sampler.step(state))
    with pytest.raises(ValueError, match=r"noise must be \(B, \*\(3, 8, 8\)\), got \(3, 3, 8, 9"):
        sampler.init(torch.zeros(3, 3, 8, 9), LABELS, KEYS)
    with pytest.raises(ValueError, match="same rows, got 2 and 3"):
        sampler.init(noise[:2], LABELS, KEYS)


def test_noise_that_a_scheduler_draws_comes_from_the_keys() -> None:
    pipe = consistency()
    before = pipe.scheduler.timesteps.clone()
    rows = Rows(pipe.unet)
    sampler = Whole(steps=4).build(pipe, LABELS)
    noise = KEYS.normal(sampler.noise_shape)
    assert sampler.stochastic
    images = generate(sampler, LABELS, KEYS, 3, noise)
    assert rows.seen == 3 * price(sampler).evaluations == 12
    for chunk in (1, 2):
        again = generate(sampler, LABELS, KEYS, chunk, noise)
        torch.testing.assert_close(again, images, rtol=1e-5, atol=1e-6)
    other = sampler.rekey(sampler.init(noise, LABELS, KEYS), KEYS.fold("other"))
    assert not torch.allclose(sampler.preview(sampler.step(other)), images, atol=1e-3)
    with pytest.raises(ValueError, match="nothing ahead"):
        sampler.rekey(sampler.look(other), KEYS)  # its image is made
    assert torch.equal(pipe.scheduler.timesteps, before)  # the caller's own is left alone


def test_best_of_n_over_a_pipeline(tmp_path: Path) -> None:
    consistency().save_pretrained(tmp_path)
    sampler, cond = pipeline_sampler(str(tmp_path), Whole(steps=2), [0, 3, 1])
    assert torch.equal(cond.label, LABELS.label)

    def found(n: int, chunk: int, ledger: Ledger | None = None) -> SearchResult:
        search = BestOfN(n=n, chunk=chunk)
        return search(sampler, cond, Bright(), KEYS, ledger or Ledger())

    one = found(1, 3)
    assert torch.equal(one.images, generate(sampler, cond, KEYS, 3))
    ledger = Ledger()
    four = found(4, 3, ledger)
    assert ledger.spent == Cost(evaluations=24, decodes=12, verifications=12)
    assert (four.scores > one.scores).any()
    assert (four.scores >= one.scores).all()
    torch.testing.assert_close(four.scores, Bright()(four.images, cond), check_dtype=False)
    for chunk in (1, 2, 5):
        again = found(4, chunk)
        torch.testing.assert_close(again.images, four.images, rtol=1e-5, atol=1e-6)
    fewer, _ = pipeline_sampler(str(tmp_path), Whole(steps=1), [0, 3, 1])
    assert fewer.noise_shape == sampler.noise_shape  # a cheap search, and its noise again in full


def test_a_call_that_is_no_function_of_its_noise_is_refused() -> None:
    pipe = consistency()
    nothing = Cond(drop=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="draws numbers that no generator gives it"):
        Whole(steps=1).build(pipe, nothing)  # a class is drawn at random
    with pytest.raises(ConfigError, match="call must not give latents, height, which the search"):
        Whole(call={"height": 8, "latents": 1})
    with pytest.raises(ConfigError, match="ConsistencyModelPipeline has no argument 'guidance_sc"):
        Whole(guidance_scale=2.0).build(pipe, LABELS)
    with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
        Whole(steps=0)
    with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
        Stepwise(steps=0)


# with the pipelines' own text encoders, which need transformers

PROMPTS = ["a red cube", "a cat", "a red cube"]
NOT = "no blue cube"


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers")


def size(kind: str) -> dict[str, int]:
    return {"height": 32, "width": 64} if kind == "sana" else {"height": 16, "width": 24}


def whole(kind: str, **other: Any) -> Whole:
    call: dict[str, Any] = {"max_sequence_length": LENGTH} if kind not in ("sd", "sdxl") else {}
    if kind in ("pixart", "sana"):
        call["use_resolution_binning"] = False
    if kind == "flux":
        call["true_cfg_scale"] = 2.0
    return Whole(**{"steps": 3, "guidance_scale": SCALE, "call": call, **size(kind), **other})


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_pipeline_is_searched_whole(kind: str, transformers: Any) -> None:
    pipe = pipeline(kind)
    pipe.set_progress_bar_config(disable=True)
    texts = [Rows(getattr(pipe, n)) for n in pipe.components if n.startswith("text_encoder")]
    rows, how = Rows(getattr(pipe, network_name(pipe))), whole(kind)
    sampler, cond = pipeline_sampler(pipe, how, PROMPTS, NOT)
    encoded = [text.seen for text in texts]
    assert cond.prompts == tuple(PROMPTS)
    assert cond.text.shape[:2] == (3, 2 * LENGTH if kind == "sd3" else LENGTH)
    noise = KEYS.normal(sampler.noise_shape)
    images = generate(sampler, cond, KEYS, 3, noise)
    assert images.shape == (3, 3, how.height, how.width)
    assert rows.seen == 3 * sampler.cost(0).evaluations == 3 * 3 * 2
    for chunk in (1, 2):
        again = generate(sampler, cond, KEYS, chunk, noise)
        torch.testing.assert_close(again, images, rtol=1e-4, atol=1e-4)
    found = BestOfN(n=2, chunk=3)(sampler, cond, Bright(), KEYS, Ledger())
    assert (found.scores >= Bright()(generate(sampler, cond, KEYS, 3), cond) - 1e-6).all()
    assert [text.seen for text in texts] == encoded  # none since
    told = {"prompt": PROMPTS, "negative_prompt": [NOT] * 3, "num_inference_steps": how.steps}
    called = {"guidance_scale": SCALE, **size(kind), **how.call}
    plain = by_hand(pipe, noise, **told, **called)
    torch.testing.assert_close(images, plain, rtol=1e-4, atol=1e-4)
    assert images.std() > 0.01
    with pytest.raises(ValueError, match="prompts must be at least one"):
        conditions(pipe, [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_pipeline_is_searched_step_by_step(kind: str, transformers: Any) -> None:
    pipe = pipeline(kind)
    pipe.set_progress_bar_config(disable=True)
    if kind == "sana":  # its own scheduler rounds the times that the network is told
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scale = 2.0 if kind == "flux" else SCALE
    solver = DPMSolverPP2M() if kind == "pixart" else Euler()
    how = {"steps": STEPS, "guidance_scale": scale, "distilled": SCALE, "solver": solver}
    call = whole(kind).call
    cond = conditions(pipe, PROMPTS, NOT, call)
    sampler = Stepwise(**how, **size(kind)).build(pipe, cond)
    state = started(sampler, cond)
    ours = sampler.preview(finished(sampler, state))
    noise = F.unfold(state.x, 2, stride=2).transpose(1, 2) if kind == "flux" else state.x
    told = {"prompt": PROMPTS, "negative_prompt": [NOT] * 3, "num_inference_steps": STEPS}
    theirs = by_hand(pipe, noise, guidance_scale=SCALE, **told, **size(kind), **call)
    torch.testing.assert_close(ours, theirs.clamp(-1, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "call", "evaluations", "stochastic"),
    [
        ("UniPCMultistepScheduler", {}, {}, 4, False),
        ("HeunDiscreteScheduler", {}, {}, 7, False),
        ("PNDMScheduler", {"skip_prk_steps": True}, {}, 5, False),
        ("DDIMScheduler", {}, {"eta": 0.5}, 4, True),
        ("EulerAncestralDiscreteScheduler", {}, {}, 4, True),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}, 4, True),
        ("LCMScheduler", {}, {}, 4, True),
    ],
)
def test_any_scheduler_is_paid_for_and_seeded(
    name: str,
    options: dict[str, Any],
    call: dict[str, Any],
    evaluations: int,
    stochastic: bool,
    transformers: Any,
) -> None:
    pipe = pipeline("sd")
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    rows = Rows(pipe.unet)
    sampler, cond = pipeline_sampler(pipe, whole("sd", steps=4, call=call), PROMPTS, NOT)
    assert sampler.stochastic == stochastic
    images = generate(sampler, cond, KEYS, 3)
    assert rows.seen == 3 * sampler.cost(0).evaluations == 3 * 2 * evaluations
    torch.testing.assert_close(generate(sampler, cond, KEYS, 1), images, rtol=1e-4, atol=1e-4)
    noise, other = KEYS.normal(sampler.noise_shape), KEYS.fold("other")
    again = run(sampler, noise, cond, other)
    assert torch.allclose(again, images, atol=1e-5) is not stochastic


def test_guidance_and_noise_that_only_a_pipeline_knows(transformers: Any) -> None:
    pipe = pipeline("flux")
    cheap = {"max_sequence_length": LENGTH}
    sampler, _ = pipeline_sampler(pipe, whole("flux", call=cheap), PROMPTS)
    assert sampler.cost(0).evaluations == 3  # its scale is a number that the network is told
    assert sampler.noise_shape == (24, 16)
    drawn = {"stochastic_sampling": True}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **drawn)
    with pytest.raises(
        ValueError, match="a FluxPipeline with this FlowMatchEulerDiscreteScheduler"
    ):
        pipeline_sampler(pipe, whole("flux"), PROMPTS, NOT)
    pipe = pipeline("pixart")  # chooses its size from a table
    pipe.transformer.register_to_config(sample_size=32)
    how = Whole(steps=2, height=250, width=200, call=cheap)
    sampler, cond = pipeline_sampler(pipe, how, PROMPTS[:1])
    assert sampler.noise_shape == (4, 272 // 2, 224 // 2)
    images = generate(sampler, cond, HashKeys.of(0, [0]), 1)
    assert images.shape == (1, 3, 250, 200)


@pytest.mark.parametrize("kind", ["auraflow", "z_image"])
def test_a_pipeline_that_encodes_by_itself(kind: str, transformers: Any) -> None:
    pipe = pipeline(kind)
    rows = Rows(pipe.transformer)
    how = Whole(steps=3, guidance_scale=2.0, height=16, width=16, call={"max_sequence_length": 8})
    sampler, cond = pipeline_sampler(pipe, how, PROMPTS, NOT)
    assert cond.text is None
    images = generate(sampler, cond, KEYS, 3)
    assert rows.seen == 3 * sampler.cost(0).evaluations == 3 * 3 * 2
    torch.testing.assert_close(generate(sampler, cond, KEYS, 1), images, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"Transformer2DModel has no counterpart here; these have"):
        Stepwise().build(pipe)


def test_half_precision_is_the_pipelines_to_keep(transformers: Any) -> None:
    pipe = pipeline("sd").to(torch.bfloat16)
    sampler, cond = pipeline_sampler(pipe, whole("sd"), PROMPTS, NOT)
    images = generate(sampler, cond, KEYS)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    steps, cond = pipeline_sampler(pipe, Stepwise(steps=2, guidance_scale=2.0), PROMPTS, NOT)
    assert generate(steps, cond, KEYS).isfinite().all()


def test_a_search_of_a_pipeline_is_told_from_others(tmp_path: Path, transformers: Any) -> None:
    """By the negative prompt, the study's before the source's, and by the precision."""
    pipeline("sd").save_pretrained(tmp_path)
    same = {"name": "class_log_prob"}, {"name": "class_log_prob", "classifier": "digits-judge-v1"}
    told = {
        "sampler": {"name": "pipeline", "steps": 2, "height": 16, "width": 24},
        "search": {"name": "best_of_n"}, "verifier": same[0], "judge": same[1], "prompts": PROMPTS,
    }  # fmt: skip
    study = build(Study, told)
    sources = [PipelineSource(path=str(tmp_path), **other) for other in (
        {}, {"negative": NOT}, {"dtype": "bfloat16"},
    )]  # fmt: skip
    makers = [source.open(study) for source in sources]
    makers.append(sources[1].open(replace(study, negative="a cat")))
    known = [maker.identity for maker in makers]
    assert all(a != b for i, a in enumerate(known) for b in known[:i])
    against = [maker.things.negative for maker in makers]
    assert against[1] is not None
    assert against[1].prompts == (NOT,) * 3
    assert against[3] is not None
    assert against[3].prompts == ("a cat",) * 3
    assert makers[0].identity == sources[0].open(study).identity
    classes = replace(study, prompts=None, classes=(1,))
    with pytest.raises(ValueError, match="a negative prompt needs prompts"):
        sources[1].open(classes)

"""diffusers in and out: weights, networks, schedulers, auto-encoders and pipelines."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones.dit import DiT, DiTConfig
from genvis.checkpoint import load_tensors
from genvis.config import ConfigError
from genvis.integrations import from_official
from genvis.integrations.diffusers_adapter import NetForDiffusers, TokenizerForDiffusers
from genvis.integrations.diffusers_backbone import DiffusersConfig, DiffusersNet
from genvis.integrations.diffusers_dit import diffusers_dit, to_diffusers
from genvis.integrations.diffusers_generator import denoiser, from_pipeline
from genvis.integrations.diffusers_models import diffusers_class
from genvis.integrations.diffusers_scheduler import schedule_of, scheduler_from
from genvis.integrations.diffusers_tokenizer import DiffusersTokenizerConfig
from genvis.nn.norms import Norms
from genvis.processes.betas import Betas
from genvis.processes.guidance import Clipped, Guided
from genvis.processes.interpolants import Linear
from genvis.processes.predictions import EDM, Clean, Noise, V, Velocity
from genvis.processes.ve import VE
from genvis.random import HashKeys
from genvis.samplers.diffusion import DiffusionSampler
from genvis.samplers.generate import run
from genvis.samplers.generator import Generator, GeneratorConfig, Guidance
from genvis.samplers.solvers import DPMSolverPP2M, Euler, Solver
from genvis.tokenizers.pixels import Pixels, PixelsConfig
from genvis.types import Cond, Denoise

diffusers = pytest.importorskip("diffusers")

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
DIT = DiTConfig(size=8, width=32, depth=2, heads=2, num_classes=10, learned_variance=True)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return HashKeys.of(seed, range(shape[0])).normal(shape[1:])


def noisy(net: nn.Module, std: float = 0.05) -> Any:
    """The net in evaluation mode, with noise on every weight: no output stays at its zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += std * torch.randn(parameter.shape, generator=generator)
    return net.eval().requires_grad_(False)


def unet(**other: Any) -> Any:
    torch.manual_seed(0)
    return noisy(diffusers.UNet2DModel(**{**UNET, **other}))


def dit(config: DiTConfig = DIT) -> DiT:
    torch.manual_seed(0)
    return noisy(config.build(), 0.1)


# DiT weights


@pytest.mark.parametrize("learned_variance", [True, False])
def test_a_dit_computes_the_same_in_both(learned_variance: bool) -> None:
    net = dit(replace(DIT, learned_variance=learned_variance))
    theirs = diffusers_dit(net)
    x, t, label = normal(3, 4, 8, 8), torch.tensor([0.0, 37.0, 999.0]), torch.tensor([0, 9, 4])
    out = theirs(x, timestep=t, class_labels=label).sample
    torch.testing.assert_close(out, net(x, t, Cond(label=label)), rtol=1e-5, atol=2e-6)
    nothing = Cond(label=label, drop=torch.ones(3, dtype=torch.bool))
    null = theirs(x, timestep=t, class_labels=torch.full((3,), 10)).sample
    torch.testing.assert_close(null, net(x, t, nothing), rtol=1e-5, atol=2e-6)
    in_train_mode = theirs.train()(x, timestep=t, class_labels=label).sample
    assert torch.equal(in_train_mode, out)  # it drops no labels of its own


def test_as_they_build_it_a_dit_has_other_frequencies() -> None:
    net = dit()
    config, state = to_diffusers(net)
    plain = diffusers.DiTTransformer2DModel(**config).eval()
    plain.load_state_dict(state)
    x, t, label = normal(2, 4, 8, 8), torch.tensor([37.0, 999.0]), torch.tensor([0, 9])
    out, ours = plain(x, timestep=t, class_labels=label).sample, net(x, t, Cond(label=label))
    assert (out - ours).norm() > 0.01 * ours.norm()
    wrapped = DiffusersNet.of(plain)  # which leaves it as it is
    torch.testing.assert_close(wrapped(x, t, Cond(label=label)), out)


def test_a_dit_goes_out_and_comes_back_unchanged(tmp_path: Path) -> None:
    net = dit()
    config, state = to_diffusers(net)
    made = from_official("dit_diffusers", state, config)
    assert made.config == net.config
    own, back = net.state_dict(), made.state_dict()
    assert list(own) == list(back)
    assert all(torch.equal(own[name], back[name]) for name in own)
    diffusers_dit(net).save_pretrained(tmp_path)  # a folder of theirs
    saved = json.loads((tmp_path / "config.json").read_text())
    weights = load_tensors(tmp_path / "diffusion_pytorch_model.safetensors")
    made = from_official("dit_diffusers", weights, saved)
    assert made.config == net.config
    assert all(torch.equal(own[name], value) for name, value in made.state_dict().items())


def test_other_copies_of_an_embedder_are_named() -> None:
    config, state = to_diffusers(dit())
    for name in ("class_embedder.embedding_table.weight", "timestep_embedder.linear_2.bias"):
        key = f"transformer_blocks.1.norm1.emb.{name}"
        changed = {**state, key: state[key] + 1e-3}
        with pytest.raises(ValueError, match=f"{key} differs from the copy in the first block"):
            from_official("dit_diffusers", changed, config)


@pytest.mark.parametrize(
    "name",
    [
        "pos_embed.proj.bias",
        "transformer_blocks.1.attn1.to_k.weight",
        "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.weight",
        "proj_out_2.weight",
    ],
)
def test_a_missing_or_extra_tensor_is_named(name: str) -> None:
    config, state = to_diffusers(dit())
    with pytest.raises(ValueError, match="extra"):
        from_official("dit_diffusers", {**state, name + "x": state[name]}, config)
    del state[name]
    with pytest.raises(ValueError, match="missing"):
        from_official("dit_diffusers", state, config)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"activation_fn": "geglu"}, "activation_fn must be 'gelu-approximate'"),
        ({"norm_type": "layer_norm"}, "norm_type must be 'ada_norm_zero'"),
        ({"cross_attention_dim": 768}, "cross_attention_dim must be None"),
        ({"out_channels": 5}, "out_channels must be in_channels or twice that, got 5"),
        ({"depth": 3}, "DiTTransformer2DModel has no argument 'depth'"),
    ],
)
def test_what_our_dit_is_not_is_refused(change: dict[str, Any], why: str) -> None:
    config, state = to_diffusers(dit())
    with pytest.raises(ConfigError, match=why):
        from_official("dit_diffusers", state, {**config, **change})


@pytest.mark.parametrize(
    "change",
    [{"size": (8, 4)}, {"mlp_ratio": 2.0}, {"null_class": False}, {"norms": Norms(kind="rms")}],
)
def test_a_dit_that_diffusers_cannot_hold_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="holds square maps, mlp_ratio 4, a null class and plain"):
        to_diffusers(replace(DIT, **change).build())


# their networks as ours: the battery of tests/conformance runs on them too


def test_labels_and_times_reach_a_network_of_theirs() -> None:
    model = unet(num_class_embeds=6)
    net = DiffusersNet.of(model)
    assert net.config.num_classes == 5
    assert net.config.shape == (3, 8, 8)
    x, t, label = normal(3, 3, 8, 8), torch.tensor([0.0, 500.5, 999.0]), torch.tensor([0, 4, 2])
    drop = torch.tensor([False, True, False])
    theirs = model(x, t, class_labels=torch.tensor([0, 5, 2])).sample
    assert torch.equal(net(x, t, Cond(label=label, drop=drop)), theirs)
    rebuilt = net.config.build()
    assert list(rebuilt.state_dict()) == list(net.state_dict())
    without = DiffusersNet.of(model, null_class=False)
    assert without.config.num_classes == 6
    with pytest.raises(ValueError, match="no null_class to drop to"):
        without(x, t, Cond(label=label, drop=drop))


def test_a_text_network_of_theirs() -> None:
    torch.manual_seed(0)
    types = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 6,
        "attention_head_dim": 2,
    }
    model = noisy(diffusers.UNet2DConditionModel(**{**UNET, **types}))
    net = DiffusersNet.of(model)
    x, t, text = normal(2, 3, 8, 8), torch.tensor([3.0, 800.0]), normal(2, 4, 6)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    cond = Cond(text=text, text_mask=mask)
    theirs = model(x, t, encoder_hidden_states=text, encoder_attention_mask=mask).sample
    assert torch.equal(net(x, t, cond), theirs)
    cut = net(x[1:], t[1:], Cond(text=text[1:, :2]))
    torch.testing.assert_close(net(x, t, cond)[1:], cut, rtol=1e-4, atol=1e-5)
    nothing = model(x, t, encoder_hidden_states=torch.zeros(2, 4, 6)).sample
    torch.testing.assert_close(net(x, t, cond.dropped()), nothing)
    blank = Cond(text=text, text_mask=torch.zeros_like(mask))
    torch.testing.assert_close(net(x, t, blank), nothing)
    drop, other = torch.tensor([True, False]), Cond(text=-text[:, :3])
    half = net(x, t, replace(cond, negative=other, drop=drop))
    expected = torch.stack([net(x, t, other)[0], theirs[1]])
    torch.testing.assert_close(half, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"text must be \(B, L, 6\), got \(2, 4, 5\)"):
        net(x, t, Cond(text=text[:, :, :5]))
    with pytest.raises(ValueError, match=r"cond\.text is missing"):
        net(x, t, Cond())


def test_networks_that_are_no_backbone_are_named() -> None:
    with pytest.raises(ValueError, match="must be a UNet2DModel or a UNet2DCond"):
        DiffusersNet.of(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="must give in_channels"):
        DiffusersConfig(arguments={"sample_size": 8})
    with pytest.raises(ConfigError, match="class_embed_type 'timestep': `Cond` has nothing for it"):
        DiffusersConfig(arguments={**UNET, "class_embed_type": "timestep"})
    with pytest.raises(ValueError, match="UNet2DModel has no argument 'depth'"):
        DiffusersConfig(arguments={**UNET, "depth": 3}).build()
    with pytest.raises(ImportError, match="the installed diffusers has no UNet9D"):
        diffusers_class("UNet9D")


def test_importing_genvis_needs_no_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ImportError, match="UNet2DModel needs the package diffusers"):
        DiffusersConfig(arguments=UNET).build()


# their schedulers: the same path on the same grid


def sampled(denoise: Denoise, solver: Solver, times: Tensor, noise: Tensor, cond: Cond) -> Tensor:
    """The latent at the end; noise is what the scheduler calls so, at its first time."""
    rows, shape = len(noise), tuple(noise.shape[1:])
    sampler = DiffusionSampler(denoise, Pixels(PixelsConfig()), solver, times, shape, noise.device)
    state = sampler.init(noise, cond, HashKeys.of(0, range(rows)))
    state = replace(state, x=noise)
    while state.k < sampler.num_steps:
        state = sampler.step(state)
    return state.x


def looped(
    model: Any, scheduler: Any, noise: Tensor, steps: int, label: Tensor, **step: Any
) -> Any:
    """diffusers' own loop, as its pipelines have it."""
    scheduler.set_timesteps(steps)
    x = noise
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = model(seen, t.expand(len(x)), class_labels=label).sample
        x = scheduler.step(out, t, x, **step).prev_sample
    return x


TABLES = [
    {"beta_schedule": "linear"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
    {"beta_start": 4e-4, "beta_end": 0.08, "num_train_timesteps": 250},
]
NOT_CLEAN = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
CASES: list[tuple[str, dict[str, Any], Solver, dict[str, Any]]] = [
    *(("DDIMScheduler", {**table, "clip_sample": False}, Euler(), {}) for table in TABLES),
    ("DDIMScheduler", {"clip_sample": True}, Euler(), {"use_clipped_model_output": True}),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, Euler(), {}),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, Euler(), {}),
    ("DDIMScheduler", {"clip_sample": False, "prediction_type": "sample"}, Euler(), {}),
    *(("DPMSolverMultistepScheduler", table, DPMSolverPP2M(), {}) for table in TABLES[:2]),
    (
        "DPMSolverMultistepScheduler",
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        DPMSolverPP2M(),
        {},
    ),
    ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, DPMSolverPP2M(), {}),
    ("FlowMatchEulerDiscreteScheduler", {}, Euler(), {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "num_train_timesteps": 500}, Euler(), {}),
    ("EDMEulerScheduler", {"sigma_max": 20.0}, Euler(), {}),
]


@pytest.mark.parametrize(("name", "options", "solver", "step"), CASES)
def test_a_network_and_a_scheduler_of_theirs_as_a_denoiser(
    name: str, options: dict[str, Any], solver: Solver, step: dict[str, Any]
) -> None:
    model, scheduler = unet(num_class_embeds=6), getattr(diffusers, name)(**options)
    label, noise = torch.tensor([1, 3]), normal(2, 3, 8, 8)
    noise = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    theirs = looped(model, scheduler, noise, 6, label, **step)
    times = schedule_of(scheduler).times(scheduler)
    ours = sampled(denoiser(model, scheduler), solver, times, noise, Cond(label=label))
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "options", "process", "prediction"),
    [
        (
            "DDPMScheduler",
            {"num_train_timesteps": 1000},
            Betas(ends=(1e-4, 0.02)),
            Noise(time_scale=1000.0),
        ),
        ("DDIMScheduler", {"beta_end": 0.03}, Betas(ends=(1e-4, 0.03)), Noise(time_scale=1000.0)),
        (
            "HeunDiscreteScheduler",
            {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
            Betas(schedule="scaled_linear", ends=(0.00085, 0.012)),
            V(time_scale=1000.0),
        ),
        (
            "DPMSolverMultistepScheduler",
            {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
            Linear(),
            Velocity(time_scale=1000.0),
        ),
        ("FlowMatchHeunDiscreteScheduler", {}, Linear(), Velocity(time_scale=1000.0)),
        ("EDMDPMSolverMultistepScheduler", {"sigma_data": 1.0}, VE(), EDM(sigma_data=1.0)),
        (
            "DDIMScheduler",
            {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
            Betas(schedule="cosine"),
            Clean(time_scale=1000.0),
        ),
    ],
)
def test_what_a_scheduler_says(name: str, options: Any, process: Any, prediction: Any) -> None:
    scheduler = getattr(diffusers, name)(**options)
    schedule = schedule_of(scheduler_from(json.loads(scheduler.to_json_string())))
    assert (schedule.process, schedule.prediction) == (process, prediction)
    scheduler.set_timesteps(10)
    times = schedule.times(scheduler)
    assert times.diff().max() < 0
    assert len(schedule.grid(process, 10)) == 11
    shown = prediction.inputs(process, times[:-1])[1]
    torch.testing.assert_close(schedule.time(shown), times[:-1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr must be False"),
        ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}, "trained_betas must be None"),
        ("DDPMScheduler", {"thresholding": True}, "thresholding must be False"),
        ("DDPMScheduler", {"beta_schedule": "sigmoid"}, "beta_schedule must be one of linear, "),
        ("DDPMScheduler", {"variance_type": "learned"}, "'learned_range' is the one"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type must be 'disc"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "prediction_type"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas must be False"),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, "prediction_type must be 'eps"),
        ("LCMScheduler", {}, "LCMScheduler has no counterpart here; these have: DDIMScheduler"),
    ],
)
def test_schedulers_without_a_counterpart_are_named(name: str, options: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        schedule_of(getattr(diffusers, name)(**options))
    with pytest.raises(ValueError, match="None has no counterpart"):
        scheduler_from({})


# auto-encoders


def autoencoder(**other: Any) -> Any:
    torch.manual_seed(0)
    small = {
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 16,
        "scaling_factor": 0.5,
    }
    return noisy(diffusers.AutoencoderKL(**{**small, **other}))


@pytest.fixture(scope="module")
def vae() -> Any:
    return autoencoder(shift_factor=0.1)


def test_an_autoencoder_as_a_tokenizer(vae: Any, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path / "vae")
    for config in (
        DiffusersTokenizerConfig(source=str(tmp_path / "vae")),
        DiffusersTokenizerConfig(source=str(tmp_path), subfolder="vae"),
    ):
        tokenizer = config.build()
        images = normal(2, 3, 16, 12).tanh()
        moments, theirs = tokenizer.encode(images), vae.encode(images).latent_dist
        assert moments.mean.shape == (2, 4, 8, 6)
        torch.testing.assert_close(moments.mean, (theirs.mean - 0.1) * 0.5)
        assert moments.std is not None
        torch.testing.assert_close(moments.std, theirs.std * 0.5)
        decoded = tokenizer.decode(moments.mean)
        torch.testing.assert_close(decoded, vae.decode(theirs.mean).sample.clamp(-1, 1))
        assert tokenizer.decode(100 * moments.mean).abs().max() <= 1
        assert not any(p.requires_grad for p in tokenizer.parameters())
        assert copy.deepcopy(tokenizer).to("cpu").encode(images).mean.equal(moments.mean)


def test_means_and_deviations_of_channels(tmp_path: Path) -> None:
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
    other = autoencoder(latents_mean=mean, latents_std=std)
    other.save_pretrained(tmp_path)
    tokenizer = DiffusersTokenizerConfig(source=str(tmp_path)).build()
    images = normal(2, 3, 8, 8).tanh()
    latent = other.encode(images).latent_dist.mean
    m, s = (torch.tensor(values).view(4, 1, 1) for values in (mean, std))
    torch.testing.assert_close(tokenizer.encode(images).mean, (latent - m) * 0.5 / s)
    decoded = other.decode(latent).sample.clamp(-1, 1)
    torch.testing.assert_close(tokenizer.decode((latent - m) * 0.5 / s), decoded)


def test_a_deterministic_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {
        "latent_channels": 4,
        "attention_head_dim": 4,
        "encoder_block_types": ("ResBlock", "ResBlock"),
        "decoder_block_types": ("ResBlock", "ResBlock"),
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), ()),
        "decoder_qkv_multiscales": ((), ()),
        "scaling_factor": 0.4,
    }
    dc = diffusers.AutoencoderDC(**small).eval()
    dc.save_pretrained(tmp_path)
    tokenizer = DiffusersTokenizerConfig(source=str(tmp_path)).build()
    images = normal(2, 3, 8, 8).tanh()
    moments = tokenizer.encode(images)
    assert moments.std is None
    torch.testing.assert_close(moments.mean, dc.encode(images).latent * 0.4)
    decoded = dc.decode(moments.mean / 0.4).sample.clamp(-1, 1)
    torch.testing.assert_close(tokenizer.decode(moments.mean), decoded)


def test_folders_that_do_not_fit_are_named(vae: Any, tmp_path: Path) -> None:
    def refused(folder: Path, why: str) -> None:
        with pytest.raises(ValueError, match=why):
            DiffusersTokenizerConfig(source=str(folder)).build()

    refused(tmp_path / "nothing", "nothing: not a model of diffusers")
    unet().save_pretrained(tmp_path / "unet")
    refused(tmp_path / "unet", "holds a UNet2DModel, expected AutoencoderKL or AutoencoderDC")
    grey = autoencoder(in_channels=1, out_channels=1)
    grey.save_pretrained(tmp_path / "grey")
    refused(tmp_path / "grey", "images have 3 channels, this encoder 1")
    vae.save_pretrained(tmp_path / "vae")
    config = tmp_path / "vae" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "latent_channel": 8}))
    refused(tmp_path / "vae", "AutoencoderKL has no argument 'latent_channel'")
    config.write_text(json.dumps({**settings, "use_quant_conv": False}))
    refused(tmp_path / "vae", "does not fit AutoencoderKL: unexpected_keys.*quant_conv")


# pipelines


def noise_of(seed: int, rows: int, *shape: int) -> Tensor:
    return torch.randn((rows, *shape), generator=torch.Generator().manual_seed(seed))


def generator(process: Any, prediction: Any, **backbone: Any) -> Generator:
    config = GeneratorConfig(
        backbone=replace(DIT, channels=3, learned_variance=False, **backbone),
        process=process,
        prediction=prediction,
        tokenizer=PixelsConfig(),
    )
    return Generator(config, dit(config.backbone), config.tokenizer.build())


@pytest.mark.parametrize(
    ("process", "prediction"),
    [(Betas(), Noise()), (Betas(), V()), (Linear(), Velocity())],
    ids=["noise", "v", "flow"],
)
@pytest.mark.parametrize("expected", ["epsilon", "v_prediction"])
def test_one_of_ours_in_their_pipeline(process: Any, prediction: Any, expected: str) -> None:
    """The images of our own sampler on the same noise, whatever either side predicts."""
    ours = generator(process, prediction)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type=expected)
    net = NetForDiffusers(ours, scheduler)
    pipeline = diffusers.DDIMPipeline(unet=net, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(3)
    images = pipeline(batch_size=2, generator=seed, num_inference_steps=5, output_type="np").images
    scheduler.set_timesteps(5)
    times, dropped = net.schedule.times(scheduler), Cond(drop=torch.ones(2, dtype=torch.bool))
    x = sampled(net.denoise, Euler(), times, noise_of(3, 2, 3, 8, 8), dropped)
    expected_images = (ours.tokenizer.decode(x) / 2 + 0.5).permute(0, 2, 3, 1)
    assert images.std() > 0.05
    torch.testing.assert_close(torch.from_numpy(images), expected_images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_labels_and_guidance_of_their_dit_pipeline(scale: float) -> None:
    ours = generator(Betas(), Noise())
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    net, decoder = NetForDiffusers(ours, scheduler), TokenizerForDiffusers(ours.tokenizer, 3, 1)
    pipeline = diffusers.DiTPipeline(transformer=net, vae=decoder, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        class_labels=[7, 2],
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=5,
        output_type="np",
    ).images
    denoise: Denoise = ours.denoiser() if scale == 1 else Guided(ours.denoiser(), scale)
    scheduler.set_timesteps(5)
    times, cond = net.schedule.times(scheduler), Cond(label=torch.tensor([7, 2]))
    x = sampled(denoise, Euler(), times, noise_of(3, 2, 3, 8, 8), cond)
    expected = (ours.tokenizer.decode(x) / 2 + 0.5).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.from_numpy(images), expected, rtol=1e-3, atol=1e-3)


def test_our_guidance_in_a_pipeline_of_theirs() -> None:
    ours = generator(Linear(), Velocity())
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    guidance = Guidance(scale=3.0, interval=(0.2, 0.8))
    plain, guided = (NetForDiffusers(ours, scheduler, g) for g in (Guidance(), guidance))
    x, label = normal(2, 3, 8, 8), torch.tensor([1, 5])
    for step, same in ((900.0, True), (500.0, False)):
        a, b = (net(x, torch.tensor(step), class_labels=label).sample for net in (plain, guided))
        assert torch.equal(a, b) is same
    out = ours.net(x, torch.full((2,), 500.0), Cond(label=label))
    (shown,) = plain(x, 500.0, class_labels=label, return_dict=False)
    torch.testing.assert_close(shown, out, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="all rows must have one timestep, got 2"):
        plain(x, torch.tensor([1.0, 2.0]), class_labels=label)


def test_an_edm_network_of_ours_under_their_scheduler() -> None:
    """It sees the scaled sample and a logarithm of the noise level, and answers with F."""
    ours = generator(VE(), EDM(sigma_data=1.0))
    net = NetForDiffusers(ours, diffusers.EDMEulerScheduler(sigma_data=1.0))
    x, label = normal(2, 3, 8, 8), torch.tensor([1, 5])
    for timestep in torch.tensor([0.02, 2.5, 60.0]).log() / 4:
        out = ours.net(x, timestep.expand(2), Cond(label=label))
        shown = net(x, timestep, class_labels=label).sample
        torch.testing.assert_close(shown, out, rtol=1e-3, atol=1e-4)


def test_an_autoencoder_goes_through_both_shapes(vae: Any, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    tokenizer = DiffusersTokenizerConfig(source=str(tmp_path)).build()
    view = TokenizerForDiffusers(tokenizer, latent_channels=4, factor=2)
    images = normal(2, 3, 16, 16).tanh()
    found = view.encode(images).latent_dist
    moments = tokenizer.encode(images)
    assert torch.equal(found.mode(), moments.mean)
    seed = torch.Generator().manual_seed(5)
    expected = moments.mean + moments.std * noise_of(5, 2, 4, 8, 8)
    torch.testing.assert_close(found.sample(seed), expected)
    assert torch.equal(view.decode(found.mean).sample, tokenizer.decode(found.mean))


def test_a_pipeline_as_a_generator(vae: Any, tmp_path: Path) -> None:
    """Read, sampled as theirs on the same noise, saved as ours, and read again."""
    model = dit(replace(DIT, learned_variance=True))
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    theirs = diffusers.DiTPipeline(diffusers_dit(model), vae, scheduler)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(tmp_path / "theirs")
    theirs = diffusers.DiTPipeline.from_pretrained(tmp_path / "theirs")  # frequencies as they are
    theirs.set_progress_bar_config(disable=True)
    made = from_pipeline(tmp_path / "theirs")
    assert made.config.prediction == Noise(time_scale=1000.0, learned_variance=True)
    made.save_pretrained(tmp_path / "ours")
    again = Generator.from_pretrained(tmp_path / "ours")
    scheduler.set_timesteps(5)
    times = schedule_of(scheduler).times(scheduler)
    sampler = replace(again.sampler(), times=times)
    noise, cond = noise_of(3, 2, 4, 8, 8), Cond(label=torch.tensor([7, 2]))
    start = noise / Betas().coeffs(times[0])[1].float()
    images = run(sampler, start, cond, HashKeys.of(0, range(2)))
    latents = sampled(made.denoiser(), Euler(), times, noise, cond)
    # their pipeline forgets the shift of an auto-encoder
    expected = (vae.decode(latents / 0.5 + 0.1).sample).clamp(-1, 1)
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)
    given = {"class_labels": [7, 2], "guidance_scale": 1.0, "num_inference_steps": 5}
    seed = torch.Generator().manual_seed(3)
    shown = torch.from_numpy(theirs(**given, generator=seed, output_type="np").images)
    unshifted = (vae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(shown, unshifted, rtol=1e-3, atol=1e-3)


def test_a_pixel_pipeline_clips_as_its_scheduler_says(tmp_path: Path) -> None:
    pipeline = diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path)
    made = from_pipeline(tmp_path)
    assert made.config.tokenizer == PixelsConfig(channels=3)
    assert made.config.sampler.clip == 1.0
    assert isinstance(made.sampler().denoise, Clipped)
    noise = normal(2, 3, 8, 8)
    images = run(
        made.sampler(replace(made.config.sampler, steps=3)),
        noise,
        Cond(drop=torch.zeros(2, dtype=torch.bool)),
        HashKeys.of(0, range(2)),
    )
    assert images.shape == noise.shape
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["scheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a unet or transformer and a scheduler is needed"):
        from_pipeline(tmp_path)

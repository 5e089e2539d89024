"""Tiny diffusers pipelines with random weights, whole or in parts."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from genvis.random import HashKeys
from genvis.types import Cond

KINDS = ("sd", "sdxl", "sd3", "flux", "pixart", "sana")
PIXELS, STEPS, LENGTH = 16, 5, 8  # sides of the images, denoising steps, tokens of text
WORDS = ("<pad>", "<s>", "</s>", "<unk>", "a", "an", "red", "blue", "cube", "cat", "no", "not")

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd": ("UNet2DConditionModel", {**UNET, "cross_attention_dim": 8}),
    "sdxl": (
        "UNet2DConditionModel",
        {
            **UNET,
            "cross_attention_dim": 16,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + 8,
        },
    ),
    "sd3": (
        "SD3Transformer2DModel",
        {
            **HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "joint_attention_dim": 16,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 8,
        },
    ),
    "flux": (
        "FluxTransformer2DModel",
        {
            **HEADS,
            "in_channels": 16,
            "num_single_layers": 1,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 8,
            "guidance_embeds": True,
            "axes_dims_rope": (2, 2, 4),
        },
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {**HEADS, "sample_size": 8, "cross_attention_dim": 16, "caption_channels": 16},
    ),
    "sana": (
        "SanaTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "sample_size": 8,
        },
    ),
}
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {**TABLE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd": ("DDIMScheduler", DDIM),
    "sdxl": (
        "EulerDiscreteScheduler",
        {**TABLE, "timestep_spacing": "leading", "steps_offset": 1},
    ),
    "sd3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flux": ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0}),
    "pixart": ("DPMSolverMultistepScheduler", {}),
    "sana": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
}
WIDTHS = {  # of text and pooled
    "sd": (8, None),
    "sdxl": (16, 8),
    "sd3": (16, 16),
    "flux": (16, 8),
    "pixart": (16, None),
    "sana": (16, None),
}

T5 = {
    "vocab_size": len(WORDS), "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2
}  # fmt: skip


def noisy(net: nn.Module, std: float = 0.05) -> Any:
    """The net in evaluation mode, with noise on every weight: no output stays at its zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += std * torch.randn(parameter.shape, generator=generator)
    return net.eval().requires_grad_(False)


def kl(latents: int = 4, **other: Any) -> Any:
    import diffusers

    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    arguments = {"block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": latents}
    return noisy(diffusers.AutoencoderKL(**arguments, **blocks, **other))


def dc() -> Any:
    import diffusers

    torch.manual_seed(0)
    arguments: dict[str, Any] = {"latent_channels": 4, "attention_head_dim": 2}
    for side in ("encoder", "decoder"):
        arguments |= {
            f"{side}_block_types": ("ResBlock", "EfficientViTBlock"),
            f"{side}_block_out_channels": (8, 8),
            f"{side}_layers_per_block": (1, 1),
            f"{side}_qkv_multiscales": ((), (5,)),
        }
    made = diffusers.AutoencoderDC(
        **arguments, downsample_block_type="conv", upsample_block_type="interpolate"
    )
    return noisy(made)


def parts(kind: str) -> Any:
    """Network, scheduler and auto-encoder of a pipeline, without text encoders."""
    import diffusers

    name, arguments = NETWORKS[kind]
    torch.manual_seed(0)
    network = noisy(getattr(diffusers, name)(**arguments), 0.1)
    scheduler, options = SCHEDULERS[kind]
    shift = {"shift_factor": 0.1, "scaling_factor": 0.4} if kind in ("sd3", "flux") else {}
    return SimpleNamespace(
        **{"unet" if kind in ("sd", "sdxl") else "transformer": network},
        scheduler=getattr(diffusers, scheduler)(**options),
        vae=dc() if kind == "sana" else kl(**shift),
        default_sample_size=8,
    )


def encoded(kind: str, rows: int) -> Cond:
    """Conditions that no encoder made, each with a negative one."""
    width, pooled = WIDTHS[kind]
    keys = HashKeys.of(0, range(rows))
    masked = kind in ("pixart", "sana")

    def leaves(word: str) -> dict[str, Tensor | None]:
        own = keys.fold(word)
        mask = torch.arange(LENGTH) < 3 + torch.arange(rows)[:, None] % 4
        return {
            "text": own.normal((LENGTH, width)),
            "text_mask": mask if masked else None,
            "pooled": None if pooled is None else own.fold("pooled").normal((pooled,)),
        }

    return Cond(**leaves("given"), negative=Cond(**leaves("negative")))


def consistency(classes: int = 5, **options: Any) -> Any:
    """A class pipeline that takes latents, on pixels; its scheduler draws noise between steps."""
    import diffusers

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    net = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=classes,
        **blocks,
    )
    scheduler = diffusers.CMStochasticIterativeScheduler(**options)
    return diffusers.ConsistencyModelPipeline(noisy(net, 0.1), scheduler)


def pipeline(kind: str) -> Any:
    """The whole pipeline, with text encoders of transformers that know `WORDS`."""
    import diffusers

    if kind in ("auraflow", "z_image"):
        return _other(kind)
    own = parts(kind)
    clip, projected = (_clip(name) for name in ("CLIPTextModel", "CLIPTextModelWithProjection"))
    network = {name: getattr(own, name) for name in ("unet", "transformer") if hasattr(own, name)}
    shared = {**network, "scheduler": own.scheduler, "vae": own.vae}
    one = {"text_encoder": clip, "tokenizer": _words()}
    two = {"text_encoder_2": projected, "tokenizer_2": _words()}
    t5 = {"text_encoder_2": _t5(), "tokenizer_2": _words()}
    if kind == "sd":
        unchecked = dict.fromkeys(("safety_checker", "feature_extractor"))
        return diffusers.StableDiffusionPipeline(
            **shared, **one, **unchecked, requires_safety_checker=False
        )
    if kind == "sdxl":
        return diffusers.StableDiffusionXLPipeline(**shared, **one, **two)
    if kind == "sd3":
        three = {"text_encoder_3": _t5(), "tokenizer_3": _words()}
        first = {"text_encoder": _clip("CLIPTextModelWithProjection"), "tokenizer": _words()}
        return diffusers.StableDiffusion3Pipeline(**shared, **first, **two, **three)
    if kind == "flux":
        return diffusers.FluxPipeline(**shared, **one, **t5)
    if kind == "pixart":
        made = diffusers.PixArtAlphaPipeline
        return made(**shared, text_encoder=_t5(), tokenizer=_words())
    return diffusers.SanaPipeline(**shared, text_encoder=_gemma(), tokenizer=_words())


def _other(kind: str) -> Any:
    """One whose conditions have no counterpart here."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    scheduler, vae = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), kl(shift_factor=0.1)
    words = _words()
    if kind == "auraflow":
        net = diffusers.AuraFlowTransformer2DModel(
            sample_size=8, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16,
            joint_attention_dim=16, out_channels=4, pos_embed_max_size=64,
        )  # fmt: skip
        text = transformers.UMT5EncoderModel(transformers.UMT5Config(**T5))
        return diffusers.AuraFlowPipeline(words, noisy(text), vae, noisy(net), scheduler)
    words.chat_template = "{{ messages[0]['content'] }}"
    net = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[4, 6, 6], axes_lens=[64, 32, 32],
    )  # fmt: skip
    config = transformers.Qwen3Config(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    text = transformers.Qwen3Model(config)
    return diffusers.ZImagePipeline(scheduler, vae, noisy(text), words, noisy(net))


def _words() -> Any:
    """A tokenizer that splits at spaces."""
    import tokenizers
    import transformers
    from tokenizers import models, pre_tokenizers, processors

    numbers = {word: i for i, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=LENGTH,
    )


def _clip(name: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=8, intermediate_size=16, projection_dim=8,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=LENGTH,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return noisy(getattr(transformers, name)(config))


def _t5() -> Any:
    import transformers

    torch.manual_seed(0)
    return noisy(transformers.T5EncoderModel(transformers.T5Config(**T5)))


def _gemma() -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    return noisy(transformers.Gemma2Model(config))

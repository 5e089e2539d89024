"""Maps between images and latents."""

from genvis.config import Table

TOKENIZERS = Table(
    "tokenizer",
    {
        "pixels": "genvis.tokenizers.pixels:PixelsConfig",
        "vitok": "genvis.tokenizers.vitok:ViTokConfig",
        **{
            f"vitok_{name}": f"genvis.tokenizers.vitok:VITOK_{name.upper()}"
            for name in (
                *("s_s_16", "s_b_16", "s_l_16", "b_s_16", "b_b_16", "b_l_16", "l_l_16"),
                *("s_b_8", "s_b_32", "s_b_4x8", "s_b_8x8", "s_b_4x16"),
            )
        },
        "vitok_v2": "genvis.tokenizers.vitok_v2:ViTokV2Config",
        **{
            f"vitok_v2_{name}": f"genvis.tokenizers.vitok_v2:VITOK_V2_{name.upper()}"
            for name in (
                *("350m_f16x16", "350m_f16x32", "350m_f16x64"),
                *("5b_f16x16", "5b_f16x32", "5b_f16x64"),
            )
        },
        "tiled": "genvis.tokenizers.tiled:TiledConfig",
        "scaled": "genvis.tokenizers.scaled:ScaledConfig",
        "multi_scale_vq": "genvis.tokenizers.multi_scale_vq:MultiScaleVQConfig",
        "discrete": "genvis.tokenizers.discrete:DiscreteConfig",
        "pretrained": "genvis.tokenizers.model:PretrainedConfig",
        "diffusers": "genvis.integrations.diffusers_tokenizer:DiffusersTokenizerConfig",
    },
)

QUANTIZERS = Table(
    "quantizer",
    {
        "vq": "genvis.tokenizers.quantizers.vector:VQConfig",
        "ema_vq": "genvis.tokenizers.quantizers.vector:EMAVQConfig",
        "fsq": "genvis.tokenizers.quantizers.scalar:FSQConfig",
        "lfq": "genvis.tokenizers.quantizers.binary:LFQConfig",
        "bsq": "genvis.tokenizers.quantizers.binary:BSQConfig",
        "bernoulli": "genvis.tokenizers.quantizers.bernoulli:BernoulliConfig",
    },
)

"""DiMR: a transformer on the coarsest map and ConvNeXts on the finer ones, each of which sees the
noisy input and everything the stage below it computed. Time enters through the norms alone.

Source: Liu et al. 2024, "Alleviating Distortion in Image Generation via Multi-Resolution Diffusion
Models and Time-Dependent Layer Normalization", and the released code, whose attribute names and
initial values these are.
Letters: B batch, C channels, H W map size, h w a stage's map, D its width, E all features of the
stage below, r the ratio of two maps' sides, K classes, tau time in [-1, 1].
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from genvis.checkpoint import load_state
from genvis.config import ConfigError, build, check_arguments, config, renamed
from genvis.kernels.attention import attention
from genvis.nn.embeddings import LabelEmbedder
from genvis.nn.time_norms import TimeLayerNorm, TimeRMSNorm
from genvis.types import Cond


@config
class StageConfig:
    """One resolution: a transformer where `heads` is given, a ConvNeXt where `kernel` is.

    Its map is the input, averaged over squares of side `pool` and cut into patches of side `patch`.
    """

    width: int
    hidden: int  # of the gated MLPs
    depth: int  # blocks; an even number counts as the next one, since one is in the middle
    heads: int | None = None
    kernel: int | None = None  # side of the depthwise convolutions
    pool: int = 1
    patch: int = 1
    out_kernel: int = 3  # of the convolution that predicts at this resolution
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.width, self.hidden, self.depth, self.pool, self.patch) < 1:
            raise ValueError("width, hidden, depth, pool and patch must be at least 1")
        if (self.heads is None) == (self.kernel is None):
            raise ValueError("give heads for a transformer or kernel for a ConvNeXt, one of them")
        if self.heads is not None and (self.heads < 1 or self.width % self.heads):
            raise ValueError(f"width must be divisible by heads, got {self.width} and {self.heads}")
        for side in (self.kernel or 1, self.out_kernel):
            if side < 1 or side % 2 == 0:
                raise ValueError(f"kernel and out_kernel must be odd, got {side}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def reduction(self) -> int:
        """How many times smaller this stage's map is than the input."""
        return self.pool * self.patch

    @property
    def features(self) -> int:
        """Channels that go up to the next stage: those of the entry and of every block."""
        return self.width * (2 * (self.depth // 2) + 2)


@config
class DiMRConfig:
    """XL/2R by default, the release for ImageNet 256."""

    size: int | tuple[int, int] = 32  # of the latent map: side, or (height, width)
    channels: int = 4
    stages: tuple[StageConfig, ...] = (
        StageConfig(width=960, hidden=1920, depth=39, heads=16, patch=2),
        StageConfig(width=480, hidden=960, depth=20, kernel=7),
    )  # coarse to fine
    num_classes: int = 1000  # 0: not conditioned on classes
    # in the blocks: TD-RMS, TD-LN, RMS without time, or RMS with a gain from the first token
    norm: Literal["time_rms", "time_layer", "rms", "token_rms"] = "time_rms"
    detach: bool = False  # stages learn nothing from the losses of those above them

    def __post_init__(self) -> None:
        h, w = self.shape[1:]
        if min(h, w, self.channels, len(self.stages)) < 1 or self.num_classes < 0:
            raise ValueError(
                "size, channels and the number of stages must be at least 1, num_classes at least 0"
            )
        reductions = [stage.reduction for stage in self.stages]
        if reductions[-1] != 1 or any(a % b for a, b in pairwise(reductions)):
            raise ValueError(
                "pool * patch of every stage must be a multiple of the next stage's, and 1 in the "
                f"last, got {reductions}"
            )
        if h % reductions[0] or w % reductions[0]:
            raise ValueError(
                f"size must be divisible by the first stage's pool * patch, got {h} x {w} and "
                f"{reductions[0]}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, h, w

    def build(self) -> "DiMR":
        return DiMR(self)


DIMR_XL_2R = DiMRConfig()
DIMR_G_2R = DiMRConfig(
    stages=(
        StageConfig(width=1152, hidden=2304, depth=57, heads=16, patch=2),
        StageConfig(width=576, hidden=1152, depth=29, kernel=7),
    )
)


class DiMR(nn.Module):
    """`net.stages(x, t, cond)` has every stage's prediction, coarse to fine, for a loss at each
    resolution (`genvis.objectives.stages`); the network's own output is the last.
    """

    def __init__(self, config: DiMRConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = Stages(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The released initial values; convolutions keep torch's, norms theirs."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, TokenRMSNorm):
                nn.init.zeros_(module.linear.weight)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Network output for x (B, C, H, W) at network time t (B,), which is 0 at the clean end and
        1000 at the noise end; shaped like x. H and W may be smaller than the config's.
        """
        return self.stages(x, t, cond)[-1]


class Stages(nn.ModuleList):
    def __init__(self, config: DiMRConfig) -> None:
        kinds = [TransformerStage if stage.heads else Stage for stage in config.stages]
        super().__init__(kind(config, place) for place, kind in enumerate(kinds))
        self.config = config

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> list[Tensor]:
        """Each stage's prediction (B, C, h, w), coarse to fine; arguments as in `DiMR.forward`."""
        c, height, width = self.config.shape
        least = self.config.stages[0].reduction
        fits = x.ndim == 4 and x.shape[1] == c and x.shape[2] <= height and x.shape[3] <= width
        if not fits or x.shape[2] % least or x.shape[3] % least:
            raise ValueError(
                f"x must be (B, {c}, H, W) with H up to {height}, W up to {width}, both multiples "
                f"of {least}; got {tuple(x.shape)}"
            )
        tau = t / 500 - 1  # (B,)
        outputs, features = [], None
        for stage in self:
            out, features = stage(x, tau, cond, features)
            outputs.append(out)
            if self.config.detach:
                features = features.detach()
        return outputs


class Stage(nn.Module):
    """Blocks with long skips, at one resolution, from the input to a prediction. Here of ConvNeXts,
    which work on maps.
    """

    def __init__(self, net: DiMRConfig, place: int) -> None:
        super().__init__()
        config, (c, h, w) = net.stages[place], net.shape
        d, down, half = config.width, config.reduction, config.depth // 2
        self.input_layer = nn.Sequential(
            nn.AvgPool2d(config.pool),
            nn.Conv2d(c, d, config.patch, stride=config.patch),
            Rearrange("b d h w -> b h w d"),
            Positions(h // down, w // down, d),
        )
        if place > 0:
            below = net.stages[place - 1]
            self.upsample = Upsample(below.features, d, below.reduction // down)
        self.blocks = nn.ModuleList([Block(config, net.norm) for _ in range(2 * half + 1)])
        self.skip_denses = nn.ModuleList([nn.Linear(2 * d, d) for _ in range(half)])
        self.output_layer = nn.ModuleList(
            [
                TimeLayerNorm(d),
                Rearrange("b h w d -> b d h w"),
                nn.Conv2d(d, c, config.out_kernel, padding=config.out_kernel // 2),
            ]
        )

    def forward(
        self, x: Tensor, tau: Tensor, cond: Cond, below: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The prediction (B, C, h, w) and all features (B, h, w, E), from the input (B, C, H, W)
        and the features (B, h/r, w/r, E') of the stage below.
        """
        x = self.input_layer(x)  # (B, h, w, D)
        if below is not None:
            x = x + self.upsample(below, tau)
        rows, half = x.shape[1], len(self.skip_denses)
        kept = [self.enter(x, cond)]
        for block in self.blocks[:half]:
            kept.append(block(kept[-1], tau))
        skips = kept[1:]
        kept.append(self.blocks[half](kept[-1], tau))
        for dense, block in zip(self.skip_denses, self.blocks[half + 1 :], strict=True):
            kept.append(block(dense(torch.cat([kept[-1], skips.pop()], dim=-1)), tau))
        kept = [self.leave(features, rows) for features in kept]
        norm, to_map, conv = self.output_layer
        return conv(to_map(norm(kept[-1], tau))), torch.cat(kept, dim=-1)

    def enter(self, x: Tensor, cond: Cond) -> Tensor:
        """What the blocks work on, from a map (B, h, w, D)."""
        return x

    def leave(self, x: Tensor, rows: int) -> Tensor:
        """The map (B, rows, w, D) of what the blocks made."""
        return x


class TransformerStage(Stage):
    """Works on tokens, of which the first is the class."""

    def __init__(self, net: DiMRConfig, place: int) -> None:
        super().__init__(net, place)
        self.extra = int(net.num_classes > 0)
        if self.extra:
            self.class_embeds = LabelEmbedder(net.num_classes, net.stages[place].width)

    def enter(self, x: Tensor, cond: Cond) -> Tensor:
        x = rearrange(x, "b h w d -> b (h w) d")
        return torch.cat([self.class_embeds(cond)[:, None], x], dim=1) if self.extra else x

    def leave(self, x: Tensor, rows: int) -> Tensor:
        return rearrange(x[:, self.extra :], "b (h w) d -> b h w d", h=rows)


class Block(nn.Module):
    """A mixer between places and a gated MLP, each added to its input."""

    def __init__(self, config: StageConfig, norm: str) -> None:
        super().__init__()
        self.block1 = Attention(config, norm) if config.heads else DepthwiseConv(config)
        self.block2 = GatedMLP(config.width, config.hidden, norm)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        x = x + self.dropout(self.block1(x, tau))
        return x + self.dropout(self.block2(x, tau))


class Attention(nn.Module):
    def __init__(self, config: StageConfig, norm: str) -> None:
        super().__init__()
        d, self.heads = config.width, config.heads
        self.norm = NORMS[norm](d)
        self.query_key_value = nn.Linear(d, 3 * d, bias=False)
        self.dense = nn.Linear(d, d)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, N, D)."""
        qkv = self.query_key_value(self.norm(x, tau))
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.dense(rearrange(attention(q, k, v), "b h n d -> b n (h d)"))


class DepthwiseConv(nn.Sequential):
    """ConvNeXt's mixer, without a norm before it."""

    def __init__(self, config: StageConfig) -> None:
        d, kernel = config.width, config.kernel
        assert kernel is not None
        super().__init__(
            Rearrange("b h w d -> b d h w"),
            nn.Conv2d(d, d, kernel, padding=kernel // 2, groups=d),
            Rearrange("b d h w -> b h w d"),
        )

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:  # type: ignore[override]
        """x (B, h, w, D)."""
        return super().forward(x)


class GatedMLP(nn.Module):
    def __init__(self, width: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.norm = NORMS[norm](width)
        self.w0 = nn.Linear(width, hidden)
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        x = self.norm(x, tau)
        return self.w2(F.gelu(self.w0(x)) * self.w1(x))


class Upsample(nn.ModuleList):
    """Between two norms, a linear map that makes r x r places of one."""

    def __init__(self, features: int, width: int, r: int) -> None:
        spread = Rearrange("b h w (p q d) -> b (h p) (w q) d", p=r, q=r)
        layers = OrderedDict(kernel=nn.Linear(features, r * r * width), spread=spread)
        super().__init__([TimeLayerNorm(features), nn.Sequential(layers), TimeLayerNorm(width)])

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """(B, h, w, E) -> (B, r h, r w, D)."""
        before, shuffle, after = self
        return after(shuffle(before(x, tau)), tau)


class Positions(nn.Module):
    """A learned table; smaller maps take its first rows and columns."""

    def __init__(self, rows: int, columns: int, width: int) -> None:
        super().__init__()
        self.columns = columns
        self.position_embeddings = nn.Embedding(rows * columns, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, h, w, D)."""
        row, column = (torch.arange(side, device=x.device) for side in x.shape[1:3])
        return x + self.position_embeddings(row[:, None] * self.columns + column)


class RMSNorm(nn.Module):
    """As `TimeRMSNorm`, the same at all times."""

    def __init__(self, width: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        rms = x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return x / (rms + self.eps) * self.scale


class TokenRMSNorm(nn.Module):
    """A gain computed from the class token; on a map, from the top row, as released."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        gain = 1 + self.linear(x[:, :1])
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * gain


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "time_rms": TimeRMSNorm,
    "time_layer": TimeLayerNorm,
    "rms": RMSNorm,
    "token_rms": TokenRMSNorm,
}


OFFICIAL_NORMS = {"TDRMSN": "time_rms", "LN": "time_layer", "RMSN": "rms", "ADARMSN": "token_rms"}
# what the other block is made with
OFFICIAL_UNUSED = {"TransformerBlock": "kernel_size", "ConvNeXtBlock": "num_attention_heads"}
OFFICIAL_ARGUMENTS = (
    *("channels", "stage_configs", "num_classes", "norm_type", "pe_type", "block_grad_to_lowres"),
)
STAGE_ARGUMENTS = {
    "dim": "width",
    "hidden_dim": "hidden",
    "num_blocks": "depth",
    "num_attention_heads": "heads",
    "kernel_size": "kernel",
    "image_input_ratio": "pool",
    "input_feature_ratio": "patch",
    "final_kernel_size": "out_kernel",
    "dropout_prob": "dropout",
}


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> DiMR:
    """A DiMR from the model arguments and state dict of the release (its `MRModel`), whose last
    class means "no class".
    """
    check_arguments(official, OFFICIAL_ARGUMENTS, "the released DiMR")
    try:
        stages = [_official_stage(stage) for stage in official["stage_configs"]]
        fields = {"channels": official["channels"], "stages": [stage for stage, _ in stages]}
    except KeyError as missing:
        raise ConfigError(f"the released DiMR needs the argument {missing}") from missing
    sizes = sorted({size for _, size in stages})
    if len(sizes) > 1:
        raise ConfigError(f"max_height and max_width of the stages are of several maps: {sizes}")
    norm = official.get("norm_type", "LN")
    if norm not in OFFICIAL_NORMS:
        raise ConfigError(f"norm_type: {norm!r} is not one of {', '.join(OFFICIAL_NORMS)}")
    if official.get("pe_type", "APE") != "APE":
        raise ConfigError("pe_type must be 'APE': the released axial RoPE fails with a class token")
    fields |= {
        "size": sizes[0],
        "num_classes": official.get("num_classes", 1) - 1,
        "norm": OFFICIAL_NORMS[norm],
        "detach": official.get("block_grad_to_lowres", False),
    }
    net = build(DiMRConfig, fields).build()
    ours = "class_embeds.embedding_table."
    renamed = {name.replace("class_embeds.", ours): value for name, value in state.items()}
    load_state(net, renamed, "official DiMR")
    return net


def _official_stage(official: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
    """Our fields of a released stage, and the height and width of the input."""
    given = dict(official)
    kind, height, width = (given.pop(name) for name in ("block_type", "max_height", "max_width"))
    reduction = given["image_input_ratio"] * given["input_feature_ratio"]
    if kind not in OFFICIAL_UNUSED:
        raise ConfigError(f"block_type: {kind!r} is not one of {', '.join(OFFICIAL_UNUSED)}")
    given.pop(OFFICIAL_UNUSED[kind], None)
    check_arguments(given, STAGE_ARGUMENTS, "a stage of the released DiMR")
    return renamed(given, STAGE_ARGUMENTS), (height * reduction, width * reduction)

"""Networks of diffusers as backbones of ours: trained, sampled, searched and quantized as any.

Their weights stay in their own layout, under `model.`.
Letters: B batch, C channels, H W map size, L text tokens, S their width, K classes.
"""

from dataclasses import field
from typing import Any, Literal, get_args

from torch import Tensor, nn

from genvis.config import build, config
from genvis.integrations.diffusers_dit import faithful
from genvis.integrations.diffusers_models import make
from genvis.nn.embeddings import LabelEmbedder
from genvis.nn.text import text_or_null
from genvis.nn.transformer import check_map
from genvis.types import Cond

Network = Literal["UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel"]
NETWORKS: tuple[str, ...] = get_args(Network)
REQUIRED = {
    "UNet2DModel": (),
    "UNet2DConditionModel": ("cross_attention_dim",),
    "DiTTransformer2DModel": ("num_embeds_ada_norm",),
}
FOREIGN = ("class_embed_type", "addition_embed_type", "encoder_hid_dim", "time_cond_proj_dim")
SMALLEST = {"sample_size": 32, "in_channels": 3, "out_channels": 3}


@config
class DiffusersConfig:
    """arguments: those of the class, of which those that say shapes must be given.

    null_class: the last row of its table of classes is "no label"; in a DiT it always is. Text is
    cond.text (B, L, S), S the cross_attention_dim; rows whose condition is dropped take that of
    cond.negative, or zeros.
    """

    model: Network = "UNet2DModel"
    arguments: dict[str, Any] = field(default_factory=SMALLEST.copy)
    null_class: bool = True

    def __post_init__(self) -> None:
        for name in (*SMALLEST, *REQUIRED[self.model]):
            if self.arguments.get(name) is None:
                raise ValueError(f"arguments of a {self.model} must give {name}")
        for name in FOREIGN:
            if self.arguments.get(name) is not None:
                raise ValueError(f"{name} {self.arguments[name]!r}: `Cond` has nothing for it")
        if not isinstance(self.text_width, int):
            raise ValueError(f"cross_attention_dim must be one number, got {self.text_width}")

    @property
    def shape(self) -> tuple[int, int, int]:
        size = self.arguments["sample_size"]
        h, w = (size, size) if isinstance(size, int) else size
        return self.arguments["in_channels"], h, w

    @property
    def num_classes(self) -> int:
        """0: no labels."""
        rows = self.arguments.get("num_class_embeds")
        return rows - self.null_class if rows else self.arguments.get("num_embeds_ada_norm", 0)

    @property
    def text_width(self) -> int:
        """0: no text."""
        return self.arguments.get("cross_attention_dim", 0)

    @property
    def learned_variance(self) -> bool:
        return self.arguments["out_channels"] == 2 * self.arguments["in_channels"]

    def build(self) -> "DiffusersNet":
        return DiffusersNet(self, make(self.model, self.arguments))


class DiffusersNet(nn.Module):
    def __init__(self, config: DiffusersConfig, model: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.model = faithful(model) if config.model == "DiTTransformer2DModel" else model
        self.label: LabelEmbedder | None = None
        if config.num_classes:
            self.label = LabelEmbedder(config.num_classes, 1, config.null_class)
            self.label.add_module("embedding_table", nn.Identity())  # their model has the table

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.config.shape

    @property
    def learned_variance(self) -> bool:
        return self.config.learned_variance

    @classmethod
    def of(cls, model: Any, null_class: bool = True) -> "DiffusersNet":
        """Around a model at hand. ValueError if it is of another kind than `NETWORKS`."""
        kind = type(model).__name__
        if kind not in NETWORKS:
            raise ValueError(f"a network must be a {' or a '.join(NETWORKS)}, got a {kind}")
        left = set(model.config.get("_use_default_values", ())) - {*SMALLEST, *REQUIRED[kind]}
        given = {
            name: value
            for name, value in model.config.items()
            if name not in left and not name.startswith("_")
        }
        if kind == "DiTTransformer2DModel":
            given["out_channels"] = model.out_channels  # None stands for in_channels
        fields = {"model": kind, "arguments": given, "null_class": null_class}
        return cls(build(DiffusersConfig, fields), model)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Network output for x (B, C, H, W) at timestep t (B,): shaped like x, or (B, 2C, H, W)."""
        check_map(x, self.config.shape)
        given: dict[str, Tensor] = {}
        if self.label is not None:
            given["class_labels"] = self.label(cond)
        if self.config.text_width:
            text, seen = text_or_null(cond, len(x), self.config.text_width, x)
            given["encoder_hidden_states"] = text
            given |= {} if seen is None else {"encoder_attention_mask": seen}
        out: Tensor = self.model(x, timestep=t, return_dict=False, **given)[0]
        return out

"""CLIP's two towers, with the weights of transformers' `CLIPModel` or of open_clip.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language
Supervision"; attribute names, `pre_layrnorm` too, are those of `CLIPModel`'s published weights.
Letters: B rows, L tokens of a text, N of an image, D width of a tower, E of the shared space,
S side of the network's input.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.config import config, renamed
from genvis.kernels.attention import attention

Activation = Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]


@config
class Tower:
    """A pre-norm transformer."""

    width: int
    depth: int
    heads: int
    hidden: int  # width of its MLPs
    activation: Activation = "quick_gelu"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads, self.hidden) < 1 or self.width % self.heads:
            raise ValueError(
                "width, depth, heads and hidden must be at least 1, and width a multiple of heads; "
                f"got {self.width}, {self.depth}, {self.heads} and {self.hidden}"
            )


@config
class CLIPConfig:
    """Sizes of both towers; the defaults are ViT-B/32's.

    end: the id of the token at which a text is read; None: the largest id in it, as published
    configs that say 2 mean.
    """

    text: Tower = Tower(width=512, depth=12, heads=8, hidden=2048)
    image: Tower = Tower(width=768, depth=12, heads=12, hidden=3072)
    vocabulary: int = 49408
    context: int = 77  # tokens
    end: int | None = None
    size: int = 224
    patch: int = 32
    shared: int = 512

    def __post_init__(self) -> None:
        if min(self.vocabulary, self.context, self.shared) < 1:
            raise ValueError("vocabulary, context and shared must be at least 1")
        if self.patch < 1 or self.size < self.patch:
            raise ValueError(f"size must hold a patch, got {self.size} and {self.patch}")

    def build(self) -> "CLIPNet":
        return CLIPNet(self)


VIT_H_14 = CLIPConfig(
    text=Tower(width=1024, depth=24, heads=16, hidden=4096, activation="gelu"),
    image=Tower(width=1280, depth=32, heads=16, hidden=5120, activation="gelu"),
    patch=14,
    shared=1024,
)


def official_config(given: Mapping[str, Any]) -> CLIPConfig:
    """From the config.json of a `CLIPModel`, whose absent entries have its defaults."""
    text, image = (_section(given, name) for name in ("text_config", "vision_config"))
    names = {
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "intermediate_size": "hidden",
        "hidden_act": "activation",
        "layer_norm_eps": "eps",
    }
    default = CLIPConfig()
    end = text.get("eos_token_id", 49407)
    return CLIPConfig(
        text=replace(default.text, **renamed(text, names)),
        image=replace(default.image, **renamed(image, names)),
        end=None if end == 2 else end,
        **renamed(text, {"vocab_size": "vocabulary", "max_position_embeddings": "context"}),
        **renamed(image, {"image_size": "size", "patch_size": "patch"}),
        **renamed(given, {"projection_dim": "shared"}),
    )


OPEN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
OPEN_IMAGE = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"}


def open_clip_config(given: Mapping[str, Any]) -> CLIPConfig:
    """From `model_cfg` of an open_clip config.json. ValueError for another kind of tower."""
    text, image = (given.get(name, {}) for name in ("text_cfg", "vision_cfg"))
    other = [*(text.keys() - OPEN_TEXT), *(image.keys() - OPEN_IMAGE)]
    other += given.keys() - {"embed_dim", "text_cfg", "vision_cfg", "quick_gelu"}
    if other:
        raise ValueError(
            "only open_clip's ViTs with CLIP's own text tower are read, which have no "
            + ", ".join(sorted(other))
        )
    activation: Activation = "quick_gelu" if given.get("quick_gelu") else "gelu"

    def tower(given: Mapping[str, Any], width: int, heads: int) -> Tower:
        hidden = int(width * given.get("mlp_ratio", 4.0))
        return Tower(
            width=width,
            depth=given.get("layers", 12),
            heads=heads,
            hidden=hidden,
            activation=activation,
        )

    wide = image.get("width", 768)
    return CLIPConfig(
        text=tower(text, text.get("width", 512), text.get("heads", 8)),
        image=tower(image, wide, wide // image.get("head_width", 64)),
        **renamed(text, {"vocab_size": "vocabulary", "context_length": "context"}),
        size=image.get("image_size", 224),
        patch=image.get("patch_size", 16),
        shared=given.get("embed_dim", 512),
    )


class CLIPNet(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTower(config)
        self.vision_model = ImageTower(config)
        self.visual_projection = nn.Linear(config.image.width, config.shared, bias=False)
        self.text_projection = nn.Linear(config.text.width, config.shared, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def images(self, x: Tensor) -> Tensor:
        """Prepared images (B, 3, S, S) -> (B, E), of any length."""
        return self.visual_projection(self.vision_model(x))

    def texts(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L), mask (B, L) bool (True = a real token) -> (B, E), of any length."""
        return self.text_projection(self.text_model(ids, mask))


class TextTower(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.end = config.end
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config.text)
        self.final_layer_norm = nn.LayerNorm(config.text.width, eps=config.text.eps)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        length = ids.shape[1]
        sees = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        if mask is not None:  # padding sees itself, so that no row of the softmax is empty
            itself = torch.eye(length, dtype=torch.bool, device=ids.device)
            sees = rearrange(sees & mask[:, None] | itself, "b q k -> b 1 q k")
        x = self.final_layer_norm(self.encoder(self.embeddings(ids), sees))  # (B, L, D)
        at = ids.argmax(1) if self.end is None else (ids == self.end).int().argmax(1)
        return x[torch.arange(len(x), device=x.device), at]


class ImageTower(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.embeddings = ImageEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.image.width, eps=config.image.eps)
        self.encoder = Encoder(config.image)
        self.post_layernorm = nn.LayerNorm(config.image.width, eps=config.image.eps)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(self.pre_layrnorm(self.embeddings(x)))
        return self.post_layernorm(h[:, 0])


class TextEmbeddings(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.text.width)
        self.position_embedding = nn.Embedding(config.context, config.text.width)

    def forward(self, ids: Tensor) -> Tensor:
        context = self.position_embedding.num_embeddings
        if ids.shape[1] > context:
            raise ValueError(f"a text has {ids.shape[1]} tokens, more than this CLIP's {context}")
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class ImageEmbeddings(nn.Module):
    """A class token, then patches row by row."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        width, side = config.image.width, config.size // config.patch
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, config.patch, config.patch, bias=False)
        self.position_embedding = nn.Embedding(side**2 + 1, width)

    def forward(self, x: Tensor) -> Tensor:
        patches = rearrange(self.patch_embedding(x), "b d h w -> b (h w) d")
        first = self.class_embedding.expand(len(x), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight  # (B, 1 + N, D)


class Encoder(nn.Module):
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(tower) for _ in range(tower.depth))

    def forward(self, x: Tensor, sees: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, sees)
        return x


class Layer(nn.Module):
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(tower.width, eps=tower.eps)
        self.self_attn = Attention(tower)
        self.layer_norm2 = nn.LayerNorm(tower.width, eps=tower.eps)
        self.mlp = MLP(tower)

    def forward(self, x: Tensor, sees: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), sees)
        return x + self.mlp(self.layer_norm2(x))


class Attention(nn.Module):
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.heads = tower.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(tower.width, tower.width) for _ in range(4)
        )

    def forward(self, x: Tensor, sees: Tensor | None) -> Tensor:
        q, k, v = (
            rearrange(each(x), "b n (h d) -> b h n d", h=self.heads)
            for each in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(rearrange(attention(q, k, v, sees), "b h n d -> b n (h d)"))


class MLP(nn.Module):
    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.activation = tower.activation
        self.fc1 = nn.Linear(tower.width, tower.hidden)
        self.fc2 = nn.Linear(tower.hidden, tower.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        if self.activation == "quick_gelu":
            return self.fc2(h * torch.sigmoid(1.702 * h))
        exact = self.activation == "gelu"
        return self.fc2(F.gelu(h, approximate="none" if exact else "tanh"))


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of open_clip's (and OpenAI's) layout under the names of `CLIPModel`."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith((".in_proj_weight", ".in_proj_bias")):
            stem, kind = name.rsplit(".in_proj_", 1)
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                found[_renamed(f"{stem}.{part}_proj.{kind}")] = rows
        elif name in PROJECTIONS:  # theirs multiply from the right
            found[PROJECTIONS[name]] = value.mT
        else:
            found[_renamed(name)] = value
    return found


PROJECTIONS = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
STARTS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "transformer.resblocks": "text_model.encoder.layers",
    "ln_final": "text_model.final_layer_norm",
}
PARTS = {
    ".attn.": ".self_attn.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".c_fc.": ".fc1.",
    ".c_proj.": ".fc2.",
}


def _renamed(name: str) -> str:
    start = next((old for old in STARTS if name.startswith(old)), "")
    name = STARTS.get(start, "") + name.removeprefix(start)
    for old, new in PARTS.items():
        name = name.replace(old, new)
    return name


def _section(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Older configs hold it a second time under another name, which then wins."""
    return {**(given.get(name) or {}), **(given.get(f"{name}_dict") or {})}

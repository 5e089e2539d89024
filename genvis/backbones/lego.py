"""LEGO bricks: small DiTs on patches of several sides, each refining the estimate so far.

Source: Zheng et al. 2024, "Learning Stackable and Skippable LEGO Bricks for Efficient,
Reconfigurable, and Variable-Resolution Diffusion Modeling", and the released code, whose attribute
names and initial values these are.
Letters: B batch, C channels, H W map size, r side of a brick's patches, h w of them a map,
p side of a token, i j tokens a patch, D width, K classes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genvis.backbones.dit import Block, DiTConfig, FinalLayer, initialize
from genvis.checkpoint import load_state
from genvis.config import ConfigError, build, check_arguments, config, renamed
from genvis.nn.embeddings import LabelEmbedder, TimestepEmbedder, sinusoids_2d
from genvis.nn.norms import Norms
from genvis.nn.transformer import PatchEmbed
from genvis.types import Cond, repeat, take


@config
class BrickConfig:
    side: int  # of the square patches, each denoised on its own: small is local, the map's global
    patch: int  # side of a token in them
    depth: int
    heads: int


def stack(sides: Sequence[int], depths: Sequence[int], heads: int) -> tuple[BrickConfig, ...]:
    """The released bricks: tokens of side 8 where the patches are 16 wide, else of side 2."""
    return tuple(
        BrickConfig(side=side, patch=8 if side == 16 else 2, depth=depth, heads=heads)
        for side, depth in zip(sides, depths, strict=True)
    )


@config
class LEGOConfig:
    """Sides that grow are the paper's PG (progressive growth), that shrink PR (progressive
    refinement), that do both U.
    """

    size: int | tuple[int, int] = 32  # trained on; any multiple of the bricks' sides runs
    channels: int = 4
    width: int = 1152
    bricks: tuple[BrickConfig, ...] = stack((4, 16, 32), (4, 12, 14), heads=16)
    mlp_ratio: float = 4.0
    num_classes: int = 1000  # 0: unconditional
    norms: Norms = Norms()

    def __post_init__(self) -> None:
        if not self.bricks:
            raise ValueError("bricks must name at least one brick")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be at least 0, got {self.num_classes}")
        for k in range(len(self.bricks)):
            self.trunk(k)  # a DiT's rules hold for every brick
        self.check(*self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, h, w

    def trunk(self, k: int) -> DiTConfig:
        """Brick k as a DiT on one patch: of its input, the estimate so far, and two coordinates."""
        brick = self.bricks[k]
        return DiTConfig(
            size=brick.side,
            channels=self.channels * (1 if k == 0 else 2) + 2,
            patch=brick.patch,
            width=self.width,
            depth=brick.depth,
            heads=brick.heads,
            mlp_ratio=self.mlp_ratio,
            norms=self.norms,
        )

    def check(self, channels: int, height: int, width: int) -> None:
        """ValueError unless the bricks can tile such a map."""
        sides = sorted({brick.side for brick in self.bricks})
        if channels != self.channels or any(n < 1 or n % r for n in (height, width) for r in sides):
            raise ValueError(
                f"x must be (B, {self.channels}, H, W) with H and W multiples of the bricks' sides "
                f"{', '.join(map(str, sides))}, got (B, {channels}, {height}, {width})"
            )

    def build(self) -> "LEGO":
        return LEGO(self)


def _s(size: int, sides: Sequence[int], depths: Sequence[int]) -> LEGOConfig:
    return LEGOConfig(size=size, channels=3, width=384, bricks=stack(sides, depths, heads=6))


def _l(size: int, sides: Sequence[int], depths: Sequence[int]) -> LEGOConfig:
    channels = 3 if size == 64 else 4  # pixels, or latents of 256 x 256
    return LEGOConfig(
        size=size, channels=channels, width=1024, bricks=stack(sides, depths, heads=16)
    )


def _xl(size: int, sides: Sequence[int], depths: Sequence[int]) -> LEGOConfig:
    return LEGOConfig(size=size, bricks=stack(sides, depths, heads=16))  # latents of 256 or 512


LEGO_S_PG_64 = _s(64, (4, 16, 64), (2, 4, 6))
LEGO_S_PR_64 = _s(64, (64, 16, 4), (6, 4, 2))
LEGO_S_U_64 = _s(64, (64, 16, 4, 16, 64), (6, 4, 2, 4, 6))
LEGO_L_PG_32 = _l(32, (4, 16, 32), (4, 8, 12))
LEGO_L_PR_32 = _l(32, (32, 16, 4), (12, 8, 4))
LEGO_L_U_32 = _l(32, (32, 16, 4, 16, 32), (12, 8, 6, 8, 12))
LEGO_L_PG_64 = _l(64, (4, 16, 64), (6, 8, 12))
LEGO_L_PR_64 = _l(64, (64, 16, 4), (12, 8, 6))
LEGO_L_U_64 = _l(64, (64, 16, 4, 16, 64), (12, 8, 6, 8, 12))
LEGO_XL_PG_32 = _xl(32, (4, 16, 32), (4, 12, 14))
LEGO_XL_PR_32 = _xl(32, (32, 16, 4), (14, 12, 4))
LEGO_XL_U_32 = _xl(32, (32, 16, 4, 16, 32), (14, 10, 4, 10, 14))
LEGO_XL_PG_64 = _xl(64, (4, 16, 64), (4, 12, 14))
LEGO_XL_PR_64 = _xl(64, (64, 16, 4), (14, 12, 4))
LEGO_XL_U_64 = _xl(64, (64, 16, 4, 16, 64), (14, 12, 4, 12, 14))


class LEGO(nn.Module):
    def __init__(self, config: LEGOConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.ModuleList(
            [Brick(config.trunk(k), config.channels) for k in range(len(config.bricks))]
        )
        self.t_embedder = TimestepEmbedder(config.width)
        self.y_embedder = (
            OneHotEmbedder(config.num_classes, config.width) if config.num_classes else None
        )
        initialize(self)

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The last brick's estimate for x (B, C, H, W) at network time t (B,); shaped like x.

        H and W need not be those of the config: more patches of the same sides cover a larger map.
        """
        return self.stages(x, t, cond)[-1]

    def stages(self, x: Tensor, t: Tensor, cond: Cond, bricks: int | None = None) -> list[Tensor]:
        """What each brick puts out, each (B, C, H, W); with `bricks`, of the first ones alone."""
        if x.ndim != 4:
            raise ValueError(f"x must be (B, C, H, W), got {tuple(x.shape)}")
        self.config.check(*x.shape[1:])
        if bricks is not None and not 1 <= bricks <= len(self.model):
            raise ValueError(f"bricks must be in 1..{len(self.model)}, got {bricks}")
        c = self.t_embedder(t)  # (B, D)
        if self.y_embedder is not None:
            c = c + self.y_embedder(cond)
        tau = self.config.norms.tau(t)  # (B,) or None
        seen = torch.cat([x, coordinates(x)], dim=1)
        estimates: list[Tensor] = []
        for brick in self.model[:bricks]:
            estimates.append(brick(torch.cat([*estimates[-1:], seen], dim=1), c, tau))
        return estimates


class Brick(nn.Module):
    """A DiT that sees one patch at a time; patches share weights, positions and condition."""

    pos_embed: Tensor

    def __init__(self, config: DiTConfig, out: int) -> None:
        super().__init__()
        _, r, _ = config.shape
        d, p = config.width, config.patch
        self.side, self.patch = r, p
        self.x_embedder = PatchEmbed(config.channels, d, p)
        self.register_buffer("pos_embed", sinusoids_2d(d, r // p, r // p)[None])
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.depth)])
        self.final_layer = FinalLayer(d, p * p * out)

    def forward(self, x: Tensor, c: Tensor, tau: Tensor | None) -> Tensor:
        """x (B, C', H, W) with everything that the brick sees, c (B, D), tau (B,) for norms that
        move with time -> (B, C, H, W).
        """
        r, p, h, w = self.side, self.patch, x.shape[2] // self.side, x.shape[3] // self.side
        x = rearrange(x, "b c (h r) (w s) -> (b h w) c r s", r=r, s=r)
        x, (c, tau) = self.x_embedder(x) + self.pos_embed, repeat((c, tau), h * w)
        for block in self.blocks:
            x = block(x, c, tau)
        return rearrange(
            self.final_layer(x, c),
            "(b h w) (i j) (p q c) -> b c (h i p) (w j q)",
            h=h,
            w=w,
            i=r // p,
            p=p,
            q=p,
        )


class OneHotEmbedder(LabelEmbedder):
    """Labels as one-hot rows through a linear layer; "no label" is the row of zeros."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__(num_classes, width)
        self.embedding_table = OneHotLinear(num_classes, width)  # type: ignore[assignment]


class OneHotLinear(nn.Linear):
    def forward(self, label: Tensor) -> Tensor:
        hot = F.one_hot(label, self.in_features + 1)[:, : self.in_features]
        return super().forward(hot.to(self.weight.dtype))


def coordinates(x: Tensor) -> Tensor:
    """Row and column of the pixels of x (B, C, H, W), in [-1, 1] over the map: (B, 2, H, W)."""
    rows, columns = (torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in x.shape[2:])
    planes = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack(planes).expand(len(x), -1, -1, -1)


class SkippingLEGO(nn.Module):
    """A LEGO that leaves out its last brick where the noise level does not need it.

    The paper's rule: details are not there yet at high noise, so a local last brick
    (PR) is skipped above `t_break`; the layout is settled at low noise, so a global one (PG, U) is
    skipped below. `t_break` is a network time, which grows with noise. Rows may differ in time.
    """

    def __init__(self, net: LEGO, t_break: float) -> None:
        super().__init__()
        sides = [brick.side for brick in net.config.bricks]
        if min(sides) == max(sides) or sides[-1] not in (min(sides), max(sides)):
            raise ValueError(
                f"skipping needs bricks of several sides, the last one of the smallest or largest, "
                f"got sides {sides}"
            )
        self.net, self.t_break = net, t_break
        self.skip_high = sides[-1] == min(sides)

    @property
    def config(self) -> LEGOConfig:
        return self.net.config

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        skip = t > self.t_break if self.skip_high else t < self.t_break
        out, bricks = torch.empty_like(x), len(self.net.model)
        for rows, count in ((skip, bricks - 1), (~skip, bricks)):
            if rows.any():
                out[rows] = self.net.stages(*take((x, t, cond), rows), count)[-1]
        return out


@config
class SkipBricks:
    """The change of a network that makes it a `SkippingLEGO`."""

    t_break: float

    def apply(self, net: nn.Module) -> nn.Module:
        if not isinstance(net, LEGO):
            raise ValueError(f"skip_bricks is for LEGO networks, got {type(net).__name__}")
        return SkippingLEGO(net, self.t_break)


OFFICIAL_BRICKS = {  # released name of a brick: width, token side, heads
    f"lego_{size}_{patch}": (width, patch, heads)
    for size, width, heads in (("S", 384, 6), ("L", 1024, 16), ("XL", 1152, 16))
    for patch in (2, 4, 8, 16)
}
OFFICIAL_ARGUMENTS = {
    "in_channels": "channels",
    "label_dim": "num_classes",
    "mlp_ratio": "mlp_ratio",
}
DEFAULTS = {"model_type": ["lego_S_2", "lego_S_8", "lego_S_2"], "depths": [2, 4, 6]}
OTHER_ARGUMENTS = ("img_resolution", "model_type", "depths", "brick presets", "augment_dim")
UNUSED = ("class_dropout_prob", "learn_sigma", "train_intermediate_stages", "use_fp16")


def from_official(official: Mapping[str, Any], state: Mapping[str, Tensor]) -> LEGO:
    """A LEGO from the constructor arguments and state dict of the released class (the keys are the
    same).

    `brick presets` may describe further bricks: {name: "hidden 32, patch 2, heads 4"}. What only
    training used, or nothing at all (`learn_sigma`), is passed over; the EDM preconditioning around
    the network is the prediction's.
    """
    known = (*OFFICIAL_ARGUMENTS, *OTHER_ARGUMENTS, *UNUSED)
    check_arguments(official, known, "the released LEGO")
    given = {**DEFAULTS, **official}
    if given.get("augment_dim", 0):
        raise ConfigError("augment_dim must be 0: augmentation labels are not part of this network")
    presets = {name: _parse(words) for name, words in given.get("brick presets", {}).items()}
    fields = _bricks(
        given.get("img_resolution", []),
        given["model_type"],
        given["depths"],
        OFFICIAL_BRICKS | presets,
    )
    net = build(LEGOConfig, fields | renamed(given, OFFICIAL_ARGUMENTS)).build()
    load_state(net, state, "official LEGO")
    return net


def _bricks(
    sides: Sequence[int],
    names: Sequence[str],
    depths: Sequence[int],
    known: Mapping[str, tuple[int, int, int]],
) -> dict[str, Any]:
    """The fields of a LEGOConfig that its bricks decide."""
    if not len(sides) == len(names) == len(depths) > 0:
        raise ConfigError("img_resolution, model_type and depths must be given, equally long")
    for name in names:
        if name not in known:
            raise ConfigError(f"model_type: {name!r} is not one of {', '.join(known)}")
    widths = {known[name][0] for name in names}
    if len(widths) > 1:
        raise ConfigError("model_type: all bricks must have one width, which the condition has")
    bricks = [
        {"side": side, "patch": known[name][1], "depth": depth, "heads": known[name][2]}
        for side, name, depth in zip(sides, names, depths, strict=True)
    ]
    return {"size": max(sides), "width": widths.pop(), "bricks": bricks}


def _parse(words: str) -> tuple[int, int, int]:
    numbers = dict(re.findall(r"(hidden|patch|heads)\s+(\d+)", words))
    try:
        return int(numbers["hidden"]), int(numbers["patch"]), int(numbers["heads"])
    except KeyError as missing:
        raise ConfigError(f"brick presets: {words!r} does not say {missing}") from missing

"""LEGO bricks: what each one sees, which may be left out, and released sizes."""

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones import BACKBONES
from genvis.backbones.lego import LEGO, LEGOConfig, SkipBricks, SkippingLEGO, from_official
from genvis.config import ConfigError, build, dump
from genvis.random import HashKeys
from genvis.samplers.generate import generate, labelled
from genvis.samplers.generator import Generator, GeneratorConfig
from genvis.types import Cond

LOCAL = {"side": 2, "patch": 1, "depth": 1, "heads": 2}
MIDDLE = {"side": 4, "patch": 2, "depth": 1, "heads": 2}
GLOBAL = {"side": 8, "patch": 2, "depth": 1, "heads": 2}
STACKS = {
    "pg": [LOCAL, MIDDLE, GLOBAL],
    "pr": [GLOBAL, MIDDLE, LOCAL],
    "u": [GLOBAL, LOCAL, GLOBAL],
}
OFFICIAL = {
    "img_resolution": [4, 16, 64],
    "model_type": ["lego_S_2", "lego_S_8", "lego_S_2"],
    "depths": [1, 1, 1],
    "in_channels": 3,
}


def lego(stack: str = "pg", std: float = 0.1, **fields: object) -> LEGO:
    chosen = {"size": 8, "channels": 2, "width": 16, "num_classes": 3, **fields}
    net = BACKBONES.build({"name": "lego", "bricks": STACKS[stack], **chosen}).build().eval()
    if std:
        torch.manual_seed(0)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=std)
    return net


def inputs(rows: int = 2, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor, Cond]:
    x = HashKeys.of(0, range(rows)).normal((2, *size))
    return x, torch.linspace(-1, 1, rows), Cond(label=torch.arange(rows) % 3)


def test_every_brick_starts_at_zero() -> None:
    for estimate in lego(std=0).stages(*inputs()):
        assert not estimate.any()


def test_the_output_is_the_last_brick_and_stops_where_asked() -> None:
    net = lego()
    whole = net.stages(*inputs())
    assert [tuple(estimate.shape) for estimate in whole] == [(2, 2, 8, 8)] * 3
    assert torch.equal(net(*inputs()), whole[-1])
    assert all(map(torch.equal, net.stages(*inputs(), bricks=2), whole[:2]))
    for bricks in (0, 4):
        with pytest.raises(ValueError, match=r"bricks must be in 1\.\.3"):
            net.stages(*inputs(), bricks=bricks)


def test_patches_of_a_local_brick_do_not_see_each_other() -> None:
    net = lego()
    x, t, cond = inputs(rows=1)

    def first(x: Tensor) -> Tensor:
        return net.stages(x, t, cond, bricks=1)[0]

    jacobian = torch.autograd.functional.jacobian(first, x)[0, :, :, :, 0]  # (C, H, W, C, H, W)
    moves = jacobian.abs().sum(dim=(0, 3)).unflatten(0, (4, 2)).unflatten(2, (4, 2))
    moves = moves.unflatten(4, (4, 2)).unflatten(6, (4, 2)).sum(dim=(1, 3, 5, 7))  # (4, 4, 4, 4)
    between = moves.reshape(16, 16)  # patch put out, patch put in
    assert (between.diagonal() > 0).all()
    assert not (between - between.diagonal().diag()).any()


def test_a_later_brick_refines_the_one_before() -> None:
    net = lego()
    before = net(*inputs())
    with torch.no_grad():
        net.model[0].final_layer.linear.bias += 1
    assert not torch.allclose(net(*inputs()), before, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 16), (16, 8), (16, 24)])
def test_the_same_weights_run_on_larger_maps(size: tuple[int, int]) -> None:
    out = lego()(*inputs(size=size))
    assert out.shape == (2, 2, *size)
    assert out.isfinite().all()


def test_patches_know_their_row_from_their_column() -> None:
    net = lego()
    blank = torch.zeros(1, 2, 8, 8)
    out = net(blank, torch.zeros(1), Cond(label=torch.zeros(1, dtype=torch.int64)))
    assert not torch.allclose(out, out.mT, atol=1e-4)
    assert not torch.allclose(out[..., :4], out[..., 4:], atol=1e-4)


@pytest.mark.parametrize(
    ("stack", "skips"),
    [("pg", [True, False, False]), ("pr", [False, False, True]), ("u", [True, False, False])],
)
def test_global_bricks_rest_at_low_noise_and_local_ones_at_high(
    stack: str, skips: list[bool]
) -> None:
    net = lego(stack)
    x, t, cond = inputs(rows=3)  # network times -1, 0, 1
    stages = net.stages(x, t, cond)
    expected = torch.stack(
        [stages[-2][i] if skip else stages[-1][i] for i, skip in enumerate(skips)]
    )
    torch.testing.assert_close(SkippingLEGO(net, t_break=0.0)(x, t, cond), expected)


def test_a_skipped_brick_costs_nothing() -> None:
    net, rows = lego("pg"), []
    net.model[2].register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    SkippingLEGO(net, t_break=0.5)(*inputs(rows=4))  # network times -1, -1/3, 1/3, 1
    assert rows == [1]
    SkippingLEGO(net, t_break=2.0)(*inputs(rows=4))
    assert rows == [1]


def test_skipping_needs_two_sides() -> None:
    net = LEGOConfig(size=8, width=16, bricks=LEGOConfig().bricks[:1]).build()
    with pytest.raises(ValueError, match="bricks of several sides"):
        SkippingLEGO(net, 0.0)


def test_a_generator_that_skips_bricks_is_saved_and_sampled(tmp_path) -> None:
    config = build(
        GeneratorConfig,
        {
            "backbone": dump(lego("pg").config) | {"name": "lego", "channels": 1},
            "process": {"name": "linear"},
            "prediction": {"name": "velocity", "time_scale": 1.0},
            "tokenizer": {"name": "pixels", "channels": 1},
            "sampler": {"steps": 4},
        },
    )
    torch.manual_seed(0)
    whole = config.build()
    for parameter in whole.net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    skipping = whole.changed(SkipBricks(t_break=0.6))
    skipping.save_pretrained(tmp_path / "model")
    loaded = Generator.from_pretrained(tmp_path / "model")
    assert loaded.config.changes == (SkipBricks(t_break=0.6),)
    keys, cond = HashKeys.of(0, range(2)), labelled(config.backbone.num_classes, range(2))
    images = generate(loaded.sampler(), cond, keys)
    assert torch.equal(images, generate(skipping.sampler(), cond, keys))
    assert not torch.equal(images, generate(whole.sampler(), cond, keys))
    with pytest.raises(ValueError, match="skip_bricks is for LEGO networks, got Linear"):
        SkipBricks(t_break=0.5).apply(torch.nn.Linear(1, 1))


def test_no_label_is_the_row_of_zeros() -> None:
    net = lego()
    x, t, cond = inputs()
    free = net(x, t, cond.dropped())
    with torch.no_grad():
        net.y_embedder.embedding_table.weight.zero_()
    torch.testing.assert_close(net(x, t, cond), free)


def test_without_classes_labels_are_ignored() -> None:
    net = lego(num_classes=0)
    x, t, cond = inputs()
    assert torch.equal(net(x, t, cond), net(x, t, Cond()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 12}, "multiples of the bricks' sides"),
        ({"width": 18}, "divisible by 4"),
        ({"bricks": [{**LOCAL, "patch": 3}]}, "divisible by patch"),
        ({"bricks": []}, "at least one brick"),
        ({"num_classes": -1}, "num_classes"),
    ],
)
def test_bricks_that_do_not_fit_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lego(**fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment_dim": 9}, "augment_dim must be 0"),
        ({"model_type": ["lego_S_2", "lego_S_3", "lego_S_2"]}, "'lego_S_3' is not one of"),
        ({"model_type": ["lego_S_2", "lego_L_8", "lego_S_2"]}, "one width"),
        ({"depths": [1, 1]}, "equally long"),
        ({"surprise": 1}, "no argument 'surprise'"),
        ({"brick presets": {"T_2": "hidden 32, patch 2"}}, "does not say 'heads'"),
    ],
)
def test_wrong_official_arguments_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_official({**OFFICIAL, **change}, {})


def test_official_weights_fit_strictly() -> None:
    state = BACKBONES.build({"name": "lego_s_pg_64"})
    with torch.device("meta"):
        state = state.build().state_dict()
    with pytest.raises(ValueError, match="extra"):
        from_official(OFFICIAL, state)  # the preset is deeper


@pytest.mark.parametrize(
    ("name", "depths", "tenths"),
    [
        ("lego_l_pg_64", (6, 6, 12), 4),  # the depths of the released weights: 0.4B, truncated
        ("lego_xl_u_32", (14, 10, 4, 10, 14), 12),  # 1.2B
    ],
)
def test_released_nets_have_the_published_size(
    name: str, depths: tuple[int, ...], tenths: int
) -> None:
    config = BACKBONES.build(name)
    bricks = [
        {"side": b.side, "patch": b.patch, "depth": depth, "heads": b.heads}
        for b, depth in zip(config.bricks, depths, strict=True)
    ]
    with torch.device("meta"):
        net = BACKBONES.build({"name": name, "bricks": bricks}).build()
    assert sum(p.numel() for p in net.parameters()) // 10**8 == tenths


@pytest.mark.parametrize("name", [n for n in BACKBONES if n.startswith("lego_")])
def test_presets_stack_as_their_names_say(name: str) -> None:
    _, size, kind, side = name.split("_")
    config = BACKBONES.build(name)
    sides = [brick.side for brick in config.bricks]
    assert config.shape == (4 if int(side) == 32 or size == "xl" else 3, int(side), int(side))
    assert config.width == {"s": 384, "l": 1024, "xl": 1152}[size]
    half = [4, 16, int(side)]
    assert sides == {"pg": half, "pr": half[::-1], "u": half[:0:-1] + half}[kind]

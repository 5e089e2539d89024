"""Transformations before rounding: exact functions, less error, strict files, bad inputs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genvis.config import ConfigError, build, dump
from genvis.quant import ROUNDINGS, TRANSFORMS
from genvis.quant.activations import Activation, Dynamic, Static, observing, uncalibrated
from genvis.quant.adaquant import AdaQuant
from genvis.quant.floating import Float
from genvis.quant.format import Format
from genvis.quant.gptq import GPTQ
from genvis.quant.integer import Integer
from genvis.quant.minifloat import E2M1, E4M3
from genvis.quant.modules import quantized_layers
from genvis.quant.mx import MX
from genvis.quant.nvfp4 import NVFP4
from genvis.quant.plan import Plan, Rule
from genvis.quant.report import state_bytes, summary
from genvis.quant.rounding import NEAREST, Rounding
from genvis.quant.seen import seeing
from genvis.quant.transform import Layer, Transform, groups
from genvis.quant.transforms.keep_tokens import KeepTokens
from genvis.quant.transforms.low_rank import LowRank
from genvis.quant.transforms.ostquant import OstQuant
from genvis.quant.transforms.outliers import Outliers
from genvis.quant.transforms.repq import RepQ
from genvis.quant.transforms.rotate import Rotate
from genvis.quant.transforms.scaling import AWQ, Smooth
from genvis.quant.transforms.split import Split
from genvis.random import HashKeys

INT4, INT8 = Integer(bits=4), Integer(bits=8)
TOKEN4, TOKEN8 = (Dynamic(format=Integer(bits=b, rule="asym")) for b in (4, 8))
TENSOR8 = Static(format=Integer(bits=8, rule="asym", group="tensor"))
OST = OstQuant(block=8, steps=5)
ANY_LAYER: list[Transform] = [
    Smooth(),
    Smooth(alpha=0.8),
    RepQ(),
    RepQ(center="median"),
    Rotate(),
    OST,
]
NO_GROUPS: list[Transform] = [Outliers(columns=3), LowRank(rank=2), Split(at=(5, 9))]
ALL: list[Transform] = [*ANY_LAYER, *NO_GROUPS, AWQ(points=4), KeepTokens()]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return HashKeys.of(seed, [0]).normal(shape)[0]


def skewed(x: Tensor, axis: int) -> Tensor:
    """Channel j has mean and deviation of its own, the third one by far the largest."""
    spread = torch.linspace(0.5, 3, x.shape[axis])
    spread[2] = 40
    return ((x.movedim(axis, -1) + 0.3) * spread).movedim(-1, axis)


def seeded(layer: Any, seed: int = 9) -> Any:
    """Numbers as large as torch's own initial ones, always the same."""
    width = layer.weight[0].numel() ** -0.5
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(width * (2 * HashKeys.of(seed, [0]).uniform(p.shape)[0] - 1))
    return layer


CONV: dict[str, Any] = {"in_channels": 16, "out_channels": 4, "kernel_size": 3, "padding": 1}
LAYERS: list[tuple[Any, Tensor]] = [
    (seeded(nn.Linear(16, 6)), skewed(normal(5, 7, 16), -1)),
    (seeded(nn.Linear(16, 6, bias=False)), skewed(normal(40, 16), -1)),
    (seeded(nn.Conv2d(**CONV)), skewed(normal(3, 16, 6, 5), -3)),
    (seeded(nn.Conv2d(**CONV, bias=False, stride=2, padding_mode="circular")), normal(3, 16, 6, 5)),
    (seeded(nn.Conv2d(16, 4, 1)), skewed(normal(3, 16, 6, 5), -3)),
    (seeded(nn.Conv2d(**CONV, groups=2, padding_mode="reflect")), skewed(normal(3, 16, 6, 5), -3)),
]


def made(
    layer: Layer,
    x: Tensor | None,
    *transforms: Transform,
    weight: Format | None = None,
    act: Activation | None = None,
    rounding: Rounding = NEAREST,
) -> Any:
    rule = Rule(match=".*", weight=weight, act=act, transforms=transforms, rounding=rounding)
    return rule.quantize(layer, None if x is None else [x])


def error(module: nn.Module, layer: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((module(x) - layer(x)).square().sum() / layer(x).square().sum())


# the function stays the same


@pytest.mark.parametrize("transform", [*ANY_LAYER, *NO_GROUPS], ids=str)
@pytest.mark.parametrize("case", range(len(LAYERS)))
def test_float64_outputs_stay_the_same(case: int, transform: Transform) -> None:
    layer, x = copy.deepcopy(LAYERS[case][0]).double(), LAYERS[case][1].double()
    before = copy.deepcopy(layer.state_dict())
    if transform in NO_GROUPS and groups(layer) > 1:
        with pytest.raises(ValueError, match="is for layers without groups, got 2"):
            made(layer, x, transform)
        return
    found = made(layer, x, transform)
    assert (found(2 * x) - layer(2 * x)).abs().max() < 1e-10
    torch.testing.assert_close(found.weight, layer.weight, rtol=0, atol=1e-10)
    assert all(torch.equal(layer.state_dict()[k], v) for k, v in before.items())
    inner = [m for m in found.modules() if type(m) is type(layer)]
    assert not any(
        m.weight.shape == layer.weight.shape and torch.equal(m.weight, layer.weight) for m in inner
    )  # something did change


@pytest.mark.parametrize("case", range(len(LAYERS)))
def test_awq_keeps_the_function_before_it_rounds(case: int) -> None:
    layer, x = copy.deepcopy(LAYERS[case][0]).double(), LAYERS[case][1].double()
    eight = made(layer, x, AWQ(points=4), weight=INT8)
    assert 0 < error(eight, layer, x) < 1e-3
    given = eight.layer.scale.double()
    assert given.max() > given.min()
    unscaled = eight.layer.layer.weight / eight.layer.layer.weight.abs().amax()
    assert not torch.equal(unscaled, layer.weight / layer.weight.abs().amax())


def test_kept_tokens_are_exact_and_the_others_do_not_see_them() -> None:
    layer, x = seeded(nn.Linear(16, 6)).double(), normal(5, 7, 16).double()
    x[:, 0] = 1000 * normal(16).double()
    x[:, 3] = x[:1, 3]
    for transform in (KeepTokens(tokens=(3, 0)), KeepTokens(tokens=(3, 0), same=False)):
        assert (made(layer, x, transform)(x) - layer(x)).abs().max() < 1e-10
        rounded = made(layer, x, transform, weight=INT4, act=TENSOR8)
        with observing(rounded):
            rounded(x)
        assert (rounded(x) - layer(x))[:, [0, 3]].abs().max() < 1e-10
        assert 0 < error(rounded, layer, x[:, :]) < 1e-4
        ranges = [b for name, b in rounded.named_buffers() if name.endswith("act.range")]
        assert ranges[0].abs().max() < 10
    other = made(layer, x, KeepTokens(tokens=(0,)), weight=INT4)
    assert torch.equal(other.layer.exact.rows[0], layer(x[0, :1])[0])


def test_transformations_nest_from_the_outside_in() -> None:
    layer, x = copy.deepcopy(LAYERS[2][0]).double(), LAYERS[2][1].double()
    steps = Split(at=(8,)), Smooth(), LowRank(rank=2), Rotate()
    found = made(layer, x, *steps)
    assert (found(x) - layer(x)).abs().max() < 1e-10
    first, second = found.layer.layers
    names = [type(first).__name__, type(first.layer).__name__, type(first.layer.layer).__name__]
    assert names == ["Divided", "Beside", "Rotated"]
    assert not torch.equal(first.scale, second.scale)


# and less is lost


def outlying() -> tuple[nn.Linear, Tensor]:
    layer, x = seeded(nn.Linear(64, 32)), normal(256, 64)
    with torch.no_grad():
        layer.weight.copy_(normal(32, 64, seed=5) / 8)
    x[:, 5] *= 40
    return layer, x


@pytest.mark.parametrize(
    ("transforms", "share"),
    [
        ((Smooth(),), 0.5),
        ((Rotate(),), 0.5),
        ((Outliers(columns=1),), 0.1),
        ((Smooth(), LowRank(rank=4)), 0.3),
        ((Smooth(), Rotate()), 0.4),
    ],
    ids=str,
)
def test_what_is_prepared_is_rounded_with_less_error(
    transforms: tuple[Transform, ...], share: float
) -> None:
    layer, x = outlying()
    plain = error(made(layer, x, weight=INT4, act=TOKEN4), layer, x)
    assert error(made(layer, x, *transforms, weight=INT4, act=TOKEN4), layer, x) < share * plain


def test_learning_beats_the_rotation_that_it_starts_from() -> None:
    layer, x = outlying()
    fixed = error(made(layer, x, Rotate(), weight=INT4, act=TOKEN4), layer, x)
    learned = made(layer, x, OstQuant(block=64, steps=40, lr=0.03), weight=INT4, act=TOKEN4)
    assert error(learned, layer, x) < 0.95 * fixed


def test_repq_makes_one_range_do_for_channels_of_many() -> None:
    layer, x = seeded(nn.Linear(16, 6)), skewed(normal(300, 16), -1)
    with torch.no_grad():
        layer.weight /= x.std(0)  # every channel counts alike
    x = x + 5 * torch.arange(16.0)
    errors = []
    for steps in ((), (RepQ(),), (RepQ(center="median"),)):
        found = made(layer, x, *steps, act=TENSOR8)
        with observing(found):
            found(x)
        errors.append(error(found, layer, x))
    assert max(errors[1:]) < 0.1 * errors[0]


def test_awq_is_never_worse_than_no_scaling() -> None:
    layer, x = outlying()
    for format in (Integer(bits=3), Integer(bits=4, group=16), Float(element=E2M1)):
        plain = error(made(layer, x, weight=format), layer, x)
        assert error(made(layer, x, AWQ(), weight=format), layer, x) <= 1.001 * plain
    assert error(made(layer, x, AWQ(), weight=INT4), layer, x) < 0.3 * error(
        made(layer, x, weight=INT4), layer, x
    )


def test_parts_have_ranges_of_their_own() -> None:
    layer, x = seeded(nn.Conv2d(16, 4, 3, padding=1)), normal(3, 16, 6, 5)
    x[:, 10:] *= 50
    errors = []
    for steps in ((), (Split(at=(10,)),)):
        found = made(layer, x, *steps, weight=INT8, act=TENSOR8)
        with observing(found):
            found(x)
        errors.append(error(found, layer, torch.cat([x[:, :10], 0 * x[:, 10:]], 1)))
    assert errors[1] < 0.1 * errors[0]


def test_more_rounds_of_low_rank_leave_less() -> None:
    layer, x = seeded(nn.Linear(48, 32)), normal(100, 48)
    one, more = (
        made(layer, x, LowRank(rank=6, rounds=n), weight=Integer(bits=3)).weight for n in (1, 8)
    )
    assert (more - layer.weight).norm() < 0.98 * (one - layer.weight).norm()


# rounding

FORMATS: list[Format] = [
    Integer(bits=3),
    Integer(bits=4, group=8),
    Integer(bits=4, rule="asym", group="tensor"),
    Float(element=E4M3, scale="power_of_two"),
    MX(element=E2M1, group=8),
    NVFP4(group=8),
]


def correlated() -> Tensor:
    return normal(200, 6) @ normal(6, 16, seed=1) + 0.1 * normal(200, 16, seed=2)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_gptq_makes_up_for_what_it_rounds(format: Format) -> None:
    layer, x = seeded(nn.Linear(16, 12)), correlated()
    plain = error(made(layer, x, weight=format), layer, x)
    found = made(layer, x, weight=format, rounding=GPTQ())
    assert error(found, layer, x) < 0.7 * plain
    fitted = made(layer, x, weight=format).weight
    assert not torch.equal(found.weight, fitted)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_gptq_of_inputs_without_correlation_is_rounding_to_nearest(format: Format) -> None:
    layer, x = seeded(nn.Linear(16, 12)), torch.eye(16).repeat(3, 1)
    found = made(layer, x, weight=format, rounding=GPTQ())
    torch.testing.assert_close(found.weight, made(layer, x, weight=format).weight)


def test_gptq_breaks_ties_as_its_format_does() -> None:
    """Under sym_half every extreme is one."""
    layer, x = seeded(nn.Linear(16, 400)), torch.eye(16).repeat(3, 1)
    half = Integer(bits=4, rule="sym_half")
    found = made(layer, x, weight=half, rounding=GPTQ())
    assert torch.equal(found.weight, made(layer, x, weight=half).weight)


def test_gptq_follows_the_formula_column_by_column() -> None:
    layer, x, format = seeded(nn.Linear(150, 3)), normal(400, 150) @ normal(150, 150, seed=1), INT4
    found = made(layer, x, weight=format, rounding=GPTQ()).weight
    hessian = 2 * x.double().T @ x.double()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(150)
    w, step = layer.weight.detach().double(), layer.weight.detach().abs().amax(1) / 7
    wanted, inverse = w.clone(), torch.linalg.inv(hessian)
    for j in range(150):  # optimal brain surgery: remove column j from what may still move
        wanted[:, j] = (w[:, j] / step).round().clamp(-8, 7) * step
        e = (w[:, j] - wanted[:, j]) / inverse[j, j]
        w = w - e[:, None] * inverse[j]
        inverse = inverse - inverse[:, j, None] * inverse[j] / inverse[j, j]
    assert (found.double() - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("case", range(5))
def test_gptq_and_adaquant_of_convolutions(case: int) -> None:
    layer, x = LAYERS[case]
    x = normal(*x.shape).cumsum(-1).cumsum(-2)  # neighbours are alike
    plain = error(made(layer, x, weight=Integer(bits=3)), layer, x)
    for rounding in (GPTQ(), AdaQuant(steps=150, batch=3, weight_lr=1e-3)):
        found = made(layer, x, weight=Integer(bits=3), rounding=rounding)
        assert error(found, layer, x) < 0.8 * plain


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_adaquant_comes_nearer_to_the_layers_output(format: Format) -> None:
    layer, x = seeded(nn.Linear(16, 12)), correlated()
    act = TOKEN8 if format == FORMATS[0] else None
    plain = error(made(layer, x, weight=format, act=act), layer, x)
    rounding = AdaQuant(steps=200, weight_lr=3e-4)
    found = made(layer, x, weight=format, act=act, rounding=rounding)
    assert error(found, layer, x) < 0.9 * plain


def test_adaquant_is_never_worse_than_what_it_starts_from() -> None:
    layer, x = seeded(nn.Linear(16, 12)), correlated()
    plain = error(made(layer, x, weight=INT4), layer, x)
    wild = made(layer, x, weight=INT4, rounding=AdaQuant(steps=5, weight_lr=10.0, range_lr=10.0))
    assert error(wild, layer, x) == pytest.approx(plain)


# plans and files


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.text = nn.Linear(12, 16)
        self.blocks: Any = nn.ModuleList([nn.Linear(16, 16) for _ in range(6)])
        self.head = nn.Linear(16, 5, bias=False)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(normal(*p.shape, seed=100 * seed + i) / 4)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        h = self.stem(x).flatten(2).mT.mean(1, keepdim=True) + self.text(text)  # (B, L, D)
        for block in self.blocks:
            h = h + block(h).relu()
        return self.head(h)


def given(seed: int = 0) -> tuple[Tensor, Tensor]:
    text = normal(6, 5, 12, seed=seed + 50)
    text[:, 0] = 30 * normal(12, seed=50)
    return normal(6, 4, 5, 5, seed=seed), text


def rule(match: str, *transforms: Transform, **fields: Any) -> Rule:
    return Rule(match=match, transforms=transforms, **fields)


EVERYTHING = Plan(
    rules=(
        rule("stem", RepQ(), Split(at=(2,)), weight=INT8, act=TENSOR8, rounding=GPTQ()),
        rule("text", KeepTokens(), weight=INT8, act=TENSOR8),
        rule(r"blocks\.0", Smooth(), LowRank(rank=3), Rotate(), weight=INT4, act=TOKEN8),
        rule(r"blocks\.1", Outliers(columns=2), weight=MX(element=E4M3, group=8), act=TOKEN8),
        rule(r"blocks\.2", OST, weight=NVFP4(), act=TOKEN8, rounding=AdaQuant(steps=3)),
        rule(r"blocks\.3", AWQ(points=3), weight=Integer(bits=4, rule="asym")),
        rule(r"blocks\.4", Smooth(), weight=None),
        rule(r"head", KeepTokens(same=False), weight=INT8),
    )
)
NEED = ["stem", "text", *(f"blocks.{i}" for i in range(5))]


def seen(net: nn.Module) -> dict[str, list[Tensor]]:
    names = EVERYTHING.needing_data(net)
    with seeing(net, names, calls=2) as found, torch.no_grad():
        for seed in (0, 1):
            net(*given(seed))
    return found


def finished(net: nn.Module) -> nn.Module:
    found = EVERYTHING.apply(net, seen(net))
    with observing(found):
        found(*given())
    return found


def test_a_plan_with_everything_is_plain_data_and_every_entry_is_in_it() -> None:
    assert build(Plan, dump(EVERYTHING)) == EVERYTHING
    used = {TRANSFORMS.name_of(step) for rule in EVERYTHING.rules for step in rule.transforms}
    assert used == set(TRANSFORMS)
    assert {ROUNDINGS.name_of(rule.rounding) for rule in EVERYTHING.rules} == set(ROUNDINGS)
    short = {"match": "a", "weight": None, "transforms": ["rotate", {"name": "smooth"}]}
    assert build(Rule, short).transforms == (Rotate(), Smooth())


def test_saved_and_loaded_net_is_the_same_net(tmp_path: Path) -> None:
    net = Net()
    assert EVERYTHING.needing_data(net) == NEED
    found = finished(net)
    assert uncalibrated(found) == []
    assert list(quantized_layers(found)) == [*NEED, "head"]
    assert 0 < error_of(found, net) < 0.01
    save_file(found.state_dict(), tmp_path / "model.safetensors")
    fresh = EVERYTHING.apply(Net(seed=1))
    waiting = uncalibrated(fresh)
    assert [name for name in waiting if not name.endswith(".act")] == NEED
    assert [name for name in waiting if name.endswith(".act")] == [
        "stem.layer.layer.layers.0.act",
        "stem.layer.layer.layers.1.act",
        "text.layer.layer.act",
    ]
    with pytest.raises(ValueError, match="waits for data that its rule needs"):
        fresh(*given())
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert uncalibrated(fresh) == []
    assert torch.equal(fresh(*given(3)), found(*given(3)))
    again = copy.deepcopy(fresh)
    assert torch.equal(again(*given(3)), found(*given(3)))
    report = summary(net, found)
    assert report.bytes_after == state_bytes(found)
    saved = sum(layer.bytes_before - layer.bytes_after for layer in report.layers)
    extra = found.get_parameter("stem.layer.layer.layers.0.layer.bias")  # counted as it was
    assert saved == report.bytes_before - report.bytes_after
    assert extra.shape == (16,)


def error_of(found: nn.Module, net: nn.Module) -> float:
    with torch.no_grad():
        y, wanted = found(*given(2)), net(*given(2))
    return float((y - wanted).square().sum() / wanted.square().sum())


def test_casts_keep_scales_and_gradients_pass() -> None:
    found = finished(Net())
    half = copy.deepcopy(found).bfloat16()
    for name, buffer in found.named_buffers():
        if name.endswith(("scale", "map", "range", "shift")) and buffer.is_floating_point():
            assert half.get_buffer(name).dtype == torch.float32
            assert torch.equal(half.get_buffer(name), buffer)
    x, text = given()
    assert half(x.bfloat16(), text.bfloat16()).dtype == torch.bfloat16
    x.requires_grad_()
    found(x, text).square().sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.slow
def test_one_graph_holds_everything() -> None:
    found = finished(Net())
    whole = torch.compile(found, backend="eager", fullgraph=True)
    assert torch.equal(whole(*given(2)), found(*given(2)))


def test_a_row_does_not_depend_on_the_others() -> None:
    found, (x, text) = finished(Net()), given(2)
    alone = torch.cat([found(x[i : i + 1], text[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(found(x, text), alone, rtol=1e-4, atol=1e-4)


def test_what_is_seen_is_what_passes() -> None:
    net = Net()
    with seeing(net, ["stem", "blocks.0"], calls=1, tokens=50) as found:
        net(*given())
    assert torch.equal(found["stem"][0], given()[0][::3])  # 25 tokens a row
    assert found["blocks.0"][0].shape == (6, 5, 16)
    net(*given())
    assert [len(calls) for calls in found.values()] == [1, 1]  # nothing after the block
    with seeing(net, ["blocks.0"], calls=2) as found:
        for rows in (0, 3):  # an expert may be sent no tokens
            net.get_submodule("blocks.0")(normal(rows, 16))
    assert [len(x) for x in found["blocks.0"]] == [3]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (KeepTokens(), "tokens .0,. are not the same for every input: keep_tokens needs same: fa"),
        (KeepTokens(tokens=(5,)), r"tokens \(5,\) must be of rows \(..., L, I\), got \(6, 5, 12\)"),
        (Outliers(columns=13), "columns must be at most 12 here, got 13"),
        (LowRank(rank=13), "rank must be at most 12 here, got 13"),
        (LowRank(rank=2, rounds=2), "more than one round needs a weight's format"),
        (Split(at=(12,)), r"at must be below the 12 inputs here, got \(12,\)"),
        (AWQ(), "awq looks for the scale that is best for a weight's format, not null"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(transform: Transform, message: str) -> None:
    net, (_, text) = Net(), given()
    plan = Plan(rules=(rule("text", transform, weight=None),))
    with pytest.raises(ValueError, match=f"^text: {message}") as error:
        plan.apply(net, {"text": [text + normal(6, 5, 1)]})
    assert "\n" not in str(error.value)


def test_a_plan_that_needs_data_says_of_which_layer() -> None:
    plan = Plan(rules=(rule("text", Smooth(), weight=INT8),))
    with pytest.raises(ValueError, match="text: nothing was seen of its inputs"):
        plan.apply(Net(), {})
    for steps in ((KeepTokens(),), (Split(at=(2,)), KeepTokens(same=False))):
        with pytest.raises(ValueError, match="stem: keep_tokens is for sequences"):
            Plan(rules=(rule("stem", *steps, weight=INT8),)).apply(Net(), {"stem": [given()[0]]})


@pytest.mark.parametrize(
    ("table", "data", "message"),
    [
        (TRANSFORMS, {"name": "smooth", "alpha": 1.5}, "alpha must be in [0, 1], got 1.5"),
        (TRANSFORMS, {"name": "awq", "points": 0}, "points must be at least 1, got 0"),
        (TRANSFORMS, {"name": "repq", "center": "max"}, "center: should be 'mean' or 'median'"),
        (TRANSFORMS, {"name": "ostquant", "block": 12}, "block must be a power of two"),
        (TRANSFORMS, {"name": "ostquant", "steps": 0}, "steps must be at least 1 and lr positive"),
        (TRANSFORMS, {"name": "outliers", "columns": 0}, "columns must be at least 1, got 0"),
        (TRANSFORMS, {"name": "low_rank", "rank": 0}, "rank and rounds must be at least 1, got 0"),
        (TRANSFORMS, {"name": "split", "at": [8, 4]}, "at must be rising channel numbers"),
        (TRANSFORMS, {"name": "split", "at": []}, "at must be rising channel numbers"),
        (TRANSFORMS, {"name": "keep_tokens", "tokens": [-1]}, "different numbers from 0 on"),
        (TRANSFORMS, {"name": "svd"}, "'svd' is not one of smooth, awq"),
        (ROUNDINGS, {"name": "gptq", "damping": 0.0}, "damping must be positive, got 0.0"),
        (ROUNDINGS, {"name": "adaquant", "steps": 0}, "steps and batch must be at least 1"),
        (ROUNDINGS, {"name": "adaquant", "bias_lr": -1.0}, "rates must not be negative"),
    ],
)
def test_config_refuses(table: Any, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        table.build(data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_rounding_without_a_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounding is of weights in a format, and weight is null"):
        Rule(match="a", weight=None, rounding=GPTQ())

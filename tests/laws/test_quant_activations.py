"""Activations: observers, dynamic and static inputs, rotation, and nets that use all of them."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genvis.backbones.dit import DiTConfig
from genvis.config import ConfigError, build, dump, load, read_yaml
from genvis.quant import ACTIVATIONS, OBSERVERS
from genvis.quant.activations import Activation, Dynamic, Static, observing, uncalibrated
from genvis.quant.floating import Float
from genvis.quant.format import Format
from genvis.quant.histogram import BINS, Histogram
from genvis.quant.integer import Integer
from genvis.quant.logarithmic import LogSqrt2
from genvis.quant.minifloat import E2M1, E4M3
from genvis.quant.modules import QuantizedLayer, quantized
from genvis.quant.mx import MX
from genvis.quant.nvfp4 import NVFP4
from genvis.quant.observers import EMA, MSE, Hessian, MinMax, Observer, Percentile
from genvis.quant.plan import Plan, Rule
from genvis.quant.report import state_bytes, summary
from genvis.quant.rotation import block_size, hadamard, rotated
from genvis.quant.search import least_error
from genvis.quant.transform import Layer, Transform
from genvis.quant.transforms.rotate import Rotate
from genvis.random import HashKeys
from genvis.types import Cond

TOKEN8 = Integer(bits=8, rule="asym")
TENSOR8 = Integer(bits=8, rule="asym", group="tensor")
TENSOR4 = Integer(bits=4, group="tensor")
DYNAMIC: list[Format] = [
    TOKEN8,
    Integer(bits=4, group=8),
    Float(element=E4M3),
    MX(element=E2M1, group=8),
    NVFP4(group=8, tensor_scale=False),
]
ROTATE: tuple[Transform, ...] = (Rotate(),)
STATIC: list[Format] = [TENSOR8, TENSOR4, Float(element=E4M3, group="tensor")]
OBSERVER: list[Observer[Any]] = [MinMax(), EMA(), Percentile(), MSE(steps=20), Hessian(steps=20)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return HashKeys.of(seed, [0]).normal(shape)[0]


def batches(*shape: int, count: int = 4) -> list[Tensor]:
    return [(i + 1) * normal(*shape, seed=i) for i in range(count)]


def observe(observer: Observer[Any], data: list[Tensor], format: Format = TENSOR8) -> list[float]:
    seen = None
    for x in data:
        batch = observer.see(x, torch.ones_like(x))
        seen = batch if seen is None else observer.join(seen, batch)
    low, high = observer.range(seen, format)
    assert low.shape == high.shape == ()
    assert low.dtype == high.dtype == torch.float32
    assert low <= 0 <= high
    return [float(low), float(high)]


# histograms


def test_a_histogram_counts_what_is_in_each_bin() -> None:
    x = normal(1000)
    found = Histogram.of(x)
    edges = (torch.arange(BINS + 1) - BINS // 2) * 2.0**found.exponent
    assert torch.equal(found.counts, counted(x, edges))
    assert (found.low, found.high) == (float(x.min()), float(x.max()))
    assert BINS / 4 <= max(-found.low, found.high) / 2.0**found.exponent <= BINS / 2
    assert torch.equal(found.centers(), ((edges[1:] + edges[:-1]) / 2).float())


def counted(x: Tensor, edges: Tensor) -> Tensor:
    places = torch.bucketize(x.double(), edges.double(), right=True) - 1
    return torch.bincount(places, minlength=BINS).double()


def test_histograms_add_up_in_any_order_to_that_of_all_numbers() -> None:
    parts = [10.0**k * normal(300, seed=k) for k in (-3, 2, 0, -6)]
    together = Histogram.of(torch.cat(parts))
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        found = Histogram.of(parts[order[0]])
        for i in order[1:]:
            found = found.merge(Histogram.of(parts[i]))
        assert torch.equal(found.counts, together.counts)
        assert (found.exponent, found.low, found.high) == (
            together.exponent,
            together.low,
            together.high,
        )


def test_weights_count_as_repetitions() -> None:
    x = normal(50)
    times = torch.arange(50) % 3
    weighted = Histogram.of(x, times.float())
    assert torch.equal(weighted.counts, Histogram.of(x.repeat_interleave(times)).counts)


def test_a_histogram_of_zeros_and_of_bad_numbers() -> None:
    assert Histogram.of(torch.zeros(5)).quantile(1.0) == 0
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="numbers must be finite"):
            Histogram.of(torch.tensor([1.0, bad]))


# observers


def test_min_max_is_of_all_batches_and_contains_zero() -> None:
    data = batches(5, 7)
    both = torch.cat(data)
    assert observe(MinMax(), data) == [float(both.min()), float(both.max())]
    assert observe(MinMax(), [normal(9).abs() + 1])[0] == 0
    assert observe(MinMax(), [-normal(9).abs() - 1])[1] == 0


def test_moving_average_starts_at_the_first_batch() -> None:
    data = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 4.0]), torch.tensor([1.0, 12.0])]
    low, high = observe(EMA(momentum=0.5), data)
    assert (low, high) == ((-1 / 2 - 3 / 2) / 2 + 0, (2 / 2 + 4 / 2) / 2 + 12 / 2)


def test_percentile_leaves_out_a_share_at_each_end() -> None:
    x = normal(20000)
    low, high = observe(Percentile(share=0.99), list(x.split(3000)))
    width = 2.0 ** Histogram.of(x).exponent
    assert low == pytest.approx(float(x.quantile(0.01)), abs=3 * width)
    assert high == pytest.approx(float(x.quantile(0.99)), abs=3 * width)
    assert observe(Percentile(share=1.0), [x]) == [float(x.min()), float(x.max())]
    relu = x.clamp_min(0)
    assert observe(Percentile(share=0.99), [relu])[0] == 0


@pytest.mark.parametrize("format", STATIC, ids=str)
def test_least_squares_beats_every_other_range(format: Format) -> None:
    x = torch.cat([normal(4000), torch.tensor([-30.0, 25.0])])
    steps = 50

    def error(low: float, high: float) -> float:
        params = format.fit(torch.tensor([[low]]), torch.tensor([[high]]))
        return float((format.fake(x[None], params) - x).square().sum())

    found = error(*observe(MSE(steps=steps), [x], format))
    full = error(-30, 25)
    alike = min(error(-30 * i / steps, 25 * i / steps) for i in range(1, steps + 1))
    assert found <= alike * 1.01  # the histogram's bins are not the numbers themselves
    assert found <= full
    if format == TENSOR4:
        assert found < 0.5 * full


def test_least_squares_pulls_in_one_end_where_the_other_is_near() -> None:
    x = torch.cat([normal(4000).abs(), torch.tensor([-0.1, 40.0])])
    low, high = observe(MSE(), [x], Integer(bits=4, rule="asym", group="tensor"))
    assert high < 20
    assert low == pytest.approx(-0.1, abs=0.1)


def test_importance_moves_the_range_to_what_matters() -> None:
    x = torch.cat([normal(2000), torch.full((20,), 12.0)])
    importance = torch.ones_like(x)
    plain = MSE().range(MSE().see(x), TENSOR4)[1]
    same = Hessian().range(Hessian().see(x, importance), TENSOR4)[1]
    assert plain == same
    importance[-20:] = 1000.0
    heavy = Hessian().range(Hessian().see(x, importance), TENSOR4)[1]
    importance[-20:] = 0.0
    light = Hessian().range(Hessian().see(x, importance), TENSOR4)[1]
    assert light < plain < 12
    assert heavy == pytest.approx(12, abs=0.5)


def test_ranges_are_found_block_by_block() -> None:
    blocks = torch.stack([normal(512), normal(512, seed=1) * 5]).reshape(2, 1, 512)
    blocks[0, 0, 0] = 8
    format = Integer(bits=3)
    ends = -blocks.abs().amax(-1), blocks.abs().amax(-1)
    weight = torch.ones(512)
    low, high = least_error(format, blocks, weight, *ends, steps=40)
    for row in range(2):
        one = slice(row, row + 1)
        alone = least_error(format, blocks[one], weight, ends[0][one], ends[1][one], steps=40)
        assert torch.equal(torch.stack([low, high])[:, one], torch.stack(alone))
    assert high[0] < 6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "ema", "momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
        ({"name": "percentile", "share": 0.5}, "share must be in (0.5, 1], got 0.5"),
        ({"name": "mse", "steps": 0}, "steps must be at least 1, got 0"),
        ({"name": "kl"}, "'kl' is not one of min_max, ema, percentile, mse, hessian"),
    ],
)
def test_observer_refuses(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        OBSERVERS.build(data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_observers_refuse_bad_numbers_and_missing_importance() -> None:
    with pytest.raises(ValueError, match="numbers must be finite"):
        MinMax().see(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match=r"importance must be shaped like x \(3,\), got None"):
        Hessian().see(torch.ones(3))
    with pytest.raises(ValueError, match=r"got \(2,\)"):
        Hessian().see(torch.ones(3), torch.ones(2))


# inputs of layers

CONV = {"in_channels": 16, "out_channels": 4, "kernel_size": 3, "padding": 1}


def layers() -> list[tuple[Any, Tensor, int]]:
    """Layer, input, the axis of its inputs."""
    return [
        (nn.Linear(16, 6), normal(5, 7, 16), -1),
        (nn.Linear(16, 6, bias=False), normal(4, 16), -1),
        (nn.Conv2d(**CONV), normal(2, 16, 6, 5), -3),
        (nn.Conv2d(**CONV, groups=2, padding_mode="reflect"), normal(2, 16, 6, 5), -3),
        (nn.Conv2d(**CONV, padding_mode="circular", stride=2, bias=False), normal(16, 6, 5), -3),
    ]


def tokens(x: Tensor, axis: int) -> Tensor:
    return x.movedim(axis, -1).reshape(-1, x.shape[axis])


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("format", DYNAMIC, ids=str)
def test_dynamic_inputs_are_quantized_token_by_token(case: int, format: Format) -> None:
    layer, x, axis = layers()[case]
    wrapped = quantized(layer, None, Dynamic(format=format))
    moved = x.movedim(axis, -1)
    x_hat = torch.stack([format.fake(token[None])[0] for token in tokens(x, axis)])
    wanted = layer(x_hat.reshape(moved.shape).movedim(-1, axis))
    torch.testing.assert_close(wrapped(x), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.equal(wrapped(x), layer(x))


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("format", STATIC, ids=str)
def test_static_inputs_have_the_range_that_was_observed(case: int, format: Format) -> None:
    layer, x, _ = layers()[case]
    wrapped = quantized(layer, None, Static(format=format))
    assert uncalibrated(wrapped) == ["act"]
    with pytest.raises(ValueError, match="no range yet"):
        wrapped(x)
    with observing(wrapped):
        torch.testing.assert_close(wrapped(x / 2), layer(x / 2))  # unquantized meanwhile
        wrapped(x)
    assert uncalibrated(wrapped) == []
    assert wrapped.get_buffer("act.range").tolist() == [float(x.min()), float(x.max())]
    low, high = x.min().reshape(1, 1), x.max().reshape(1, 1)
    wanted = layer(format.fake(x[None], format.fit(low, high))[0])
    torch.testing.assert_close(wrapped(x), wanted, rtol=1e-5, atol=1e-5)
    outside = format.fake((10 * x)[None], format.fit(low, high))[0]
    torch.testing.assert_close(wrapped(10 * x), layer(outside), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("observer", OBSERVER, ids=str)
def test_every_observer_calibrates_a_net(observer: Observer[Any]) -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))
    act = Static(format=TENSOR8, observer=observer)
    made = plan(Rule(match=".*", weight=None, act=act)).apply(net)
    assert uncalibrated(made) == ["0.act", "2.act"]
    with observing(made):
        for x in batches(32, 16):
            made(x).square().mean().backward()
    assert uncalibrated(made) == []
    x = normal(32, 16, seed=9)
    error = (made(x) - net(x)).square().mean() / net(x).square().mean()
    assert 0 < error < 1e-2
    assert made.get_buffer("2.act.range")[0] > -0.2  # of a GELU


def test_observing_again_starts_over_and_a_failure_changes_nothing() -> None:
    layer = quantized(nn.Linear(8, 8), None, Static(format=TENSOR8))
    with observing(layer):
        layer(100 * normal(4, 8))
    with observing(layer):
        layer(normal(4, 8))
    range = layer.get_buffer("act.range").clone()
    assert range.abs().max() < 10
    with pytest.raises(RuntimeError, match="shapes cannot"), observing(layer):
        layer(100 * normal(4, 9))  # seen, and then the layer fails
    assert torch.equal(layer.get_buffer("act.range"), range)
    assert not torch.equal(layer(normal(4, 8)), layer.layer(normal(4, 8)))  # quantizes again


def test_what_was_not_observed_is_named() -> None:
    net = plan(Rule(match="1", weight=None, act=Static(format=TENSOR8))).apply(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    )
    with pytest.raises(ValueError, match=r"1\.act: nothing passed while observing"), observing(net):
        pass
    act = Static(format=TENSOR8, observer=Hessian())
    layer = quantized(nn.Linear(8, 8), None, act)
    with pytest.raises(ValueError, match="no gradient came back"), observing(layer):
        layer(normal(4, 8))
    with (
        pytest.raises(ValueError, match="needs gradients, which are switched off"),
        observing(layer),
        torch.no_grad(),
    ):
        layer(normal(4, 8))


def test_hessian_weights_are_the_squared_gradients_at_the_input() -> None:
    weight = torch.tensor([[1.0, 0.0, 0.0, 0.0]])  # the loss sees the first input alone
    layer = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    made: Any = quantized(layer, None, Static(format=TENSOR4, observer=Hessian(steps=200)))
    x = normal(500, 4)
    x[:, 1] *= 50
    with observing(made):
        made(x).sum().backward()
    assert made.act.range.abs().max() <= 1.05 * x[:, 0].abs().max()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "dynamic", "format": {"name": "int", "bits": 8, "group": "tensor"}}, "of its ba"),
        ({"name": "dynamic", "format": {"name": "nvfp4"}}, "scales of its own for every token"),
        ({"name": "static", "format": {"name": "int", "bits": 8}}, "format.group must be tensor"),
        ({"name": "static", "format": {"name": "mx", "element": "e2m1"}}, "must be tensor"),
        ({"name": "int", "bits": 8}, "'int' is not one of dynamic, static"),
        ({"name": "dynamic"}, "format: missing"),
        (
            {
                "name": "static",
                "format": {"name": "int", "bits": 8},
                "observer": {"name": "minmax"},
            },
            "'minmax' is not one of min_max",
        ),
    ],
)
def test_activation_refuses(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ACTIVATIONS.build(data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# rotation


def quantized_by(
    layer: Layer, weight: Format, act: Activation, transforms: tuple[Transform, ...]
) -> nn.Module:
    return Rule(match=".*", weight=weight, act=act, transforms=transforms).quantize(layer)


@pytest.mark.parametrize(("inputs", "size"), [(2, 2), (48, 16), (384, 128), (1152, 128), (64, 64)])
def test_the_rotation_is_orthonormal_symmetric_and_spreads(inputs: int, size: int) -> None:
    assert block_size(inputs) == size
    matrix = hadamard(torch.eye(inputs, dtype=torch.float64), size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(inputs).double())
    assert torch.equal(matrix, matrix.T)
    blocks = torch.block_diag(*[torch.ones(size, size)] * (inputs // size))
    torch.testing.assert_close(matrix.abs(), blocks.double() / math.sqrt(size))


@pytest.mark.parametrize("case", range(5))
def test_rotation_leaves_float64_outputs_unchanged(case: int) -> None:
    layer, x, _ = layers()[case]
    layer, x = layer.double(), x.double()
    made: Any = Rule(match=".*", weight=None, transforms=ROTATE).quantize(layer)
    assert (made(x) - layer(x)).abs().max() < 1e-10
    assert not torch.allclose(made.layer.weight, layer.weight)
    torch.testing.assert_close(made.weight, layer.weight, rtol=0, atol=1e-14)
    torch.testing.assert_close(rotated(rotated(layer.weight, 8), 8), layer.weight)


def test_rotation_pays_where_one_input_is_an_outlier() -> None:
    layer, x = nn.Linear(64, 32), normal(128, 64)
    x[:, 5] *= 40
    act = Dynamic(format=Integer(bits=4))
    errors = [
        (quantized_by(layer, Integer(bits=8), act, transforms)(x) - layer(x)).square().mean()
        for transforms in ((), ROTATE)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_rotation_needs_an_even_number_of_inputs() -> None:
    for layer in (nn.Linear(15, 4), nn.Conv2d(6, 6, 3, groups=2)):
        with pytest.raises(ValueError, match="0: rotate needs an even number of inputs, got"):
            plan(Rule(match="0", weight=None, transforms=ROTATE)).apply(nn.Sequential(layer))


# plans with all of it


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.blocks: Any = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16, bias=False)])
        self.head = nn.Linear(16, 5)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(normal(*p.shape, seed=100 * seed + i) / 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).mean((2, 3))
        for block in self.blocks:
            h = h + block(h).relu()
        return self.head(h)


def plan(*rules: Rule) -> Plan:
    return Plan(rules=rules)


def image(seed: int = 0) -> Tensor:
    return normal(6, 4, 5, 5, seed=seed)


EVERYTHING = plan(
    Rule(match="stem", weight=Integer(bits=8), act=Static(format=TENSOR8), transforms=ROTATE),
    Rule(match=r"blocks\.0", weight=NVFP4(), act=Dynamic(format=MX(element=E4M3, group=16))),
    Rule(match=r"blocks\.1", weight=None, act=Dynamic(format=TOKEN8), transforms=ROTATE),
    Rule(match="head", weight=Integer(bits=4, rule="asym"), transforms=ROTATE),
)


def calibrated(net: nn.Module) -> nn.Module:
    with observing(net):
        net(image())
    return net


def test_a_plan_with_everything_is_plain_data() -> None:
    assert build(Plan, dump(EVERYTHING)) == EVERYTHING


def test_saved_and_loaded_net_is_the_same_net(tmp_path: Path) -> None:
    net = Net()
    made = calibrated(EVERYTHING.apply(net))
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    fresh = EVERYTHING.apply(Net(seed=1))
    assert uncalibrated(fresh) == ["stem.layer.act"]
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    x = image(seed=3)
    assert torch.equal(fresh(x), made(x))
    assert uncalibrated(fresh) == []
    signal, noise = net(x).square().mean(), (made(x) - net(x)).square().mean()
    assert 0 < noise < 0.05 * signal
    path = tmp_path / "model.safetensors"
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size - 8 - header == state_bytes(made)


def test_casting_the_net_keeps_ranges_and_scales() -> None:
    made = calibrated(EVERYTHING.apply(Net()))
    half = copy.deepcopy(made).bfloat16()
    for name in ("stem.layer.act.range", "stem.layer.layer.scale", "blocks.0.layer.tensor_scale"):
        assert half.get_buffer(name).dtype == torch.float32
        assert torch.equal(half.get_buffer(name), made.get_buffer(name))
    assert half(image().bfloat16()).dtype == torch.bfloat16


def test_gradients_reach_the_input_and_unquantized_weights() -> None:
    made = calibrated(EVERYTHING.apply(Net()))
    x = image().requires_grad_()
    made(x).square().sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().amax((1, 2, 3)) > 0).all()
    grad = made.get_parameter("blocks.1.layer.weight").grad
    assert grad is not None
    assert grad.abs().max() > 0


def test_rows_do_not_depend_on_the_batch() -> None:
    made, x = calibrated(EVERYTHING.apply(Net())), image(seed=2)
    alone = torch.cat([made(row) for row in x.split(1)])
    torch.testing.assert_close(made(x), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_graph_holds_everything() -> None:
    one = quantized_by(nn.Linear(16, 16), Float(element=E4M3), Dynamic(format=TOKEN8), ROTATE)
    two = quantized(nn.Linear(16, 4), Integer(bits=4), Dynamic(format=MX(element=E4M3, group=16)))
    net, x = nn.Sequential(one, two), normal(4, 16).requires_grad_()
    whole = torch.compile(net, backend="eager", fullgraph=True)
    found, wanted = whole(x), net(x)
    assert torch.equal(found, wanted)
    (ours,) = torch.autograd.grad(found.square().sum(), x)
    (theirs,) = torch.autograd.grad(wanted.square().sum(), x)
    assert torch.equal(ours, theirs)


def test_summary_of_everything() -> None:
    net = Net()
    report = summary(net, EVERYTHING.apply(net))
    assert [layer.name for layer in report.layers] == ["stem", "blocks.0", "blocks.1", "head"]
    stem, first, second, head = report.layers
    assert [layer.format for layer in report.layers] == [r.weight for r in EVERYTHING.rules]
    assert [layer.act for layer in report.layers] == [r.act for r in EVERYTHING.rules]
    assert stem.sqnr > 35
    assert head.sqnr > 15
    assert second.sqnr > 100  # only rotated
    assert (second.bytes_before, second.bytes_after) == (1024, 1024)
    assert first.bytes_after == 16 * 16 // 2 + 16 + 4
    inputs_only = EVERYTHING.rules[2]
    assert isinstance(plan(inputs_only).apply(net).get_submodule("blocks.1"), QuantizedLayer)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(match="head", weight=MX(element=E2M1)), "head: group must divide .* 32 for 16"),
        (
            Rule(match="head", weight=None, act=Dynamic(format=MX(element=E2M1))),
            "head: act: group must divide the inputs of a row, got 32 for 16",
        ),
        (Rule(match="head", weight=LogSqrt2(bits=4)), "head: log_sqrt2 is for activations"),
    ],
)
def test_a_format_that_does_not_fit_is_one_line(rule: Rule, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        plan(rule).apply(Net())
    assert "\n" not in str(error.value)


def test_a_quantized_net_is_not_quantized_again() -> None:
    rotate = plan(Rule(match="head", weight=None, transforms=ROTATE))
    with pytest.raises(ValueError, match="net is quantized already: 'head' is"):
        rotate.apply(rotate.apply(Net()))


PLANS = sorted((Path(__file__).parents[2] / "configs").rglob("digits/*.yaml"))
PLANS = [path for path in PLANS if "rules" in read_yaml(path)]


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plans_of_the_digits_fit_its_network(path: Path) -> None:
    net = DiTConfig(size=8, channels=1, patch=2, width=96, depth=2, heads=4, num_classes=10).build()
    for i, p in enumerate(net.parameters()):
        nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(i))
    given = normal(3, 1, 8, 8), torch.tensor([0.1, 0.5, 0.9]), Cond(label=torch.tensor([0, 4, 9]))
    with torch.no_grad():
        full, made = net(*given), load(Plan, path).apply(net)(*given)
    assert 0 < (made - full).square().mean() < 0.2 * full.square().mean()


def test_activations_are_a_protocol() -> None:
    acts: list[Activation] = [Dynamic(format=TOKEN8), Static(format=TENSOR8)]
    assert [ACTIVATIONS.build(ACTIVATIONS.dump(act)) for act in acts] == acts

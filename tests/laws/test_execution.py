"""Quantized nets on real kernels: exact products, agreement with fake quantization, refusals."""

import copy
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.config import ConfigError, build
from genvis.kernels.int4_matmul import int4_matmul, int4_matmul_reference, pack_int4
from genvis.kernels.int8_matmul import EXACT, int8_matmul, int8_matmul_reference
from genvis.quant.activations import observing
from genvis.quant.execution import (
    Execution,
    Placement,
    differences,
    held_bytes,
    lines,
)
from genvis.quant.plan import Plan
from genvis.quant.products import products
from genvis.quant.seen import seeing
from genvis.random import HashKeys

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)
# of an output of a layer, beside its largest output: two orders of the same float32 operations
CLOSE = 2e-6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return HashKeys.of(seed, [0]).normal(shape)[0]


class Net(nn.Module):
    """A 3 x 3 convolution, a 1 x 1 one, and two Linear layers with a residual."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.point = nn.Conv2d(64, 32, 1)
        self.fc1 = nn.Linear(32, 64)
        self.fc2 = nn.Linear(64, 32, bias=False)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(normal(*p.shape, seed=i + 1) / p[0].numel() ** 0.5)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = self.point(self.stem(x).relu()).flatten(2).movedim(1, 2)
        return h + self.fc2(self.fc1(h).relu())


INPUT = normal(2, 3, 6, 5, seed=99)


def int_(bits: int, **fields: Any) -> dict[str, Any]:
    return {"name": "int", "bits": bits, **fields}


def dynamic(format: dict[str, Any]) -> dict[str, Any]:
    return {"name": "dynamic", "format": format}


ASYM8, HALF8 = dynamic(int_(8, rule="asym")), dynamic(int_(8, rule="sym_half"))
E4M3 = {"name": "float", "element": "e4m3"}
W8A8 = {"weight": int_(8), "act": ASYM8}
MATRICES = "point|fc.*"


def quantized(match: str = MATRICES, net: nn.Module | None = None, **rule: Any) -> nn.Module:
    plan = build(Plan, {"rules": [{"match": match, **rule}]})
    return plan.apply(net or Net()).eval().requires_grad_(False)


def execution(*backends: Any) -> Execution:
    return build(Execution, {"backends": list(backends)})


# kernels


@pytest.mark.parametrize("k", [1, 7, EXACT, 2 * EXACT + 5])
@pytest.mark.parametrize("backend", ["auto", "int", "float"])
def test_integer_products_are_exact(backend: Any, k: int) -> None:
    a, b = (
        (HashKeys.of(i, [0]).uniform((rows, k))[0] * 256 - 128).to(torch.int8)
        for i, rows in enumerate((3, 5))
    )
    a[0], b[0] = -128, -128  # the largest product there is
    wanted = int8_matmul_reference(a, b)
    assert wanted[0, 0] == 128 * 128 * k
    got = int8_matmul(a, b, backend)
    assert got.dtype == torch.int32
    assert torch.equal(got, wanted)


def test_integer_products_refuse() -> None:
    a = torch.zeros(2, 8, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"int8 \(M, K\) and \(N, K\), got torch.int8 \(2, 8\)"):
        int8_matmul(a, a[:, :4])
    with pytest.raises(ValueError, match="backend must be auto, int, float or reference"):
        int8_matmul(a, a, "cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize("group", [32, 128])
def test_int4_products_are_the_definition(group: int) -> None:
    keys = HashKeys.of(0, [0])
    codes = (keys.uniform((48, 256))[0] * 16).floor()
    scale, zero = (keys.fold(i).uniform((48, 256 // group))[0] * 8 for i in (1, 2))
    x = normal(5, 256)
    wanted = int4_matmul_reference(x, codes, scale, zero)
    got = int4_matmul(x, *pack_int4(codes, scale, zero, x.dtype), group)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    with pytest.raises(ValueError, match="multiples of 16 and inputs of 32, not 47 and 256"):
        pack_int4(codes[:47], scale[:47], zero[:47], x.dtype)


# agreement with fake quantization

REAL: dict[str, tuple[str, dict[str, Any], str]] = {
    "int8": ("int8", W8A8, "int8 x int8"),
    "int8 of 4 bits": ("int8", {"weight": int_(4), "act": ASYM8}, "int8 x int8"),
    "int8, sym_full inputs of 6 bits": (
        "int8",
        {"weight": int_(8, rule="sym_half"), "act": dynamic(int_(6))},
        "int8 x int8",
    ),
    "int8, powers of two": (
        "int8",
        {"weight": int_(8, scale="power_of_two"), "act": dynamic(int_(8, scale="power_of_two"))},
        "int8 x int8",
    ),
    "int4": ("int4", {"weight": int_(4, group=32, rule="asym")}, "float32 x int4"),
    "int4 of rows": ("int4", {"weight": int_(4)}, "float32 x int4"),
    "int4 of 3 bits": ("int4", {"weight": int_(3, group=32)}, "float32 x int4"),
    "torchao int8": ("torchao", {"weight": int_(8)}, "float32 x int8"),
    "torchao int4 in a byte": ("torchao", {"weight": int_(4, group=32)}, "float32 x int8"),
    "torchao w8a8": (
        "torchao",
        {"weight": int_(8, rule="sym_noclip"), "act": HALF8},
        "int8 x int8",
    ),
    "torchao w8a8 asym": ("torchao", W8A8, "int8 x int8"),
    "torchao e4m3": ("torchao", {"weight": E4M3}, "float32 x e4m3"),
    "torchao e5m2": ("torchao", {"weight": {**E4M3, "element": "e5m2"}}, "float32 x e5m2"),
}


@pytest.mark.parametrize("case", REAL)
def test_real_kernels_agree_with_fake_quantization(case: str) -> None:
    backend, rule, runs = REAL[case]
    if backend == "torchao":
        pytest.importorskip("torchao")
    net = quantized(**rule)
    before = copy.deepcopy(net.state_dict())
    run = execution(backend)
    placed = run.place(net)
    assert [each.name for each in placed] == ["point", "fc1", "fc2"]
    assert {(each.backend, each.runs) for each in placed} == {(backend, runs)}
    real = run.apply(net)
    found = differences(net, real, INPUT)
    assert found.keys() == {"point", "fc1", "fc2", ""}
    whole = found.pop("")  # where a sum in another order may put an input across a tie
    assert whole.sqnr > 60
    for name, gap in found.items():
        assert gap.largest <= CLOSE * gap.scale, (name, gap)
        assert gap.scale > 0.1
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_static_ranges_run_on_integers() -> None:
    act = {"name": "static", "format": int_(8, rule="asym", group="tensor")}
    net = quantized(weight=int_(8), act=act)
    with observing(net):
        net(INPUT)
    found = differences(net, execution("int8").apply(net), 1.5 * INPUT)  # some inputs are clipped
    assert all(gap.largest <= CLOSE * gap.scale for gap in found.values())


def test_full_precision_products_are_fake_quantization_bit_for_bit() -> None:
    for rule in (W8A8, {"weight": {"name": "mx", "element": "e2m1"}}):
        net = quantized(match="fc.*|stem" if rule is W8A8 else "fc.*", **rule)
        run = execution("fake")
        assert {each.runs for each in run.place(net)} == {"float32"}
        assert torch.equal(run.apply(net)(INPUT), net(INPUT))


AROUND: list[Any] = [
    "rotate",
    "smooth",
    "repq",
    {"name": "outliers", "columns": 4},
    {"name": "low_rank", "rank": 4},
    {"name": "split", "at": [32]},
    {"name": "keep_tokens", "same": False},
]


@pytest.mark.parametrize("transform", AROUND, ids=str)
@pytest.mark.parametrize(
    ("backend", "rule"), [("int8", W8A8), ("int4", {"weight": int_(4, rule="asym")})]
)
def test_kernels_stay_inside_transformations(
    backend: str, rule: dict[str, Any], transform: Any
) -> None:
    """What is put around a layer goes on as it is; the kernel has what is left to round."""
    plain = Net().eval().requires_grad_(False)
    rules = [{"match": "fc2", "transforms": [transform], **rule}]
    plan = build(Plan, {"rules": rules})
    with seeing(plain, plan.needing_data(plain), calls=1) as seen:
        plain(INPUT)
    net = plan.apply(plain, seen).eval()
    run = execution(backend)
    found = differences(net, run.apply(net), INPUT)
    assert len(found) >= 2
    assert all(gap.largest <= CLOSE * gap.scale for gap in found.values())
    assert all(each.name.startswith("fc2") for each in run.place(net))


def test_memory_of_every_backend() -> None:
    net = quantized(match="fc1", weight=int_(4, group=32))
    held = {}
    for backend in ("fake", "int4"):
        run = execution(backend)
        (held[backend],) = held_bytes(run.apply(net), run.place(net)).values()
    bias, weights, groups = 4 * 64, 64 * 32, 64
    assert held == {"fake": 4 * weights + bias, "int4": weights // 2 + 8 * groups + bias}
    net = quantized(match="fc1", **W8A8)
    (int8,) = held_bytes(execution("int8").apply(net), execution("int8").place(net)).values()
    assert int8 == weights + 4 * 64 + 4 * 64 + bias  # codes, scales, their sums


@needs_torchao
def test_memory_of_a_tensor_made_of_tensors() -> None:
    net = quantized(match="fc2", weight=int_(8))
    run = execution("torchao")
    assert held_bytes(run.apply(net), run.place(net)) == {"fc2": 64 * 32 + 4 * 32}


@needs_torchao
@pytest.mark.parametrize("element", ["e4m3", "e2m1"])
@pytest.mark.parametrize("rule", ["floor", "ceil", "rceil", "even"])
def test_mx_of_torchao_is_ours_bit_for_bit(rule: str, element: str) -> None:
    """Without a card that has it: its emulation, in bfloat16."""
    from genvis.integrations.torchao_backend import mx_tensor

    format = {"name": "mx", "element": element, "rule": rule}
    net = quantized(match="fc.*", net=Net(torch.bfloat16), weight=format, act=dynamic(format))
    (first, _) = products(net).values()
    weight = mx_tensor(first, "emulated")
    assert torch.equal(weight.dequantize(), first.weight.weight)
    x = normal(9, 32).bfloat16()
    wanted = net.get_submodule("fc1")(x)
    assert torch.equal(nn.functional.linear(x, weight, first.weight.bias), wanted)


# what is said before the run


def test_a_layer_without_a_kernel_is_an_error_unless_fake_is_asked_for() -> None:
    net = quantized(match=".*", **W8A8)
    with pytest.raises(ValueError, match=r"no back-end runs 1 \(stem\) of 4 layers") as error:
        execution("int8").place(net)
    assert "int8 takes Linear layers and plain 1 x 1 convolutions" in str(error.value)
    assert "let `fake` end the list" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no back-end runs 1"):
        execution("int8").apply(net)
    run = execution("int8", "fake")
    placed = {each.name: each for each in run.place(net)}
    takes = "Linear layers and plain 1 x 1 convolutions"
    asym = "dynamic int bits=8 rule=asym"
    assert placed["stem"] == Placement(
        "stem", "int bits=8", asym, "fake", "float32", {"int8": takes}
    )
    assert placed["fc1"] == Placement("fc1", "int bits=8", asym, "int8", "int8 x int8", {})
    assert lines(run.place(net)) == [
        f"fake runs 1 (stem) of 4 layers in float32: int8 takes {takes}",
        "int8 runs 3 (point, fc1, fc2) of 4 layers in int8 x int8",
    ]
    found = differences(net, run.apply(net), INPUT)
    assert found["stem"].largest == 0
    assert found[""].largest <= CLOSE * found[""].scale


def test_layers_choose_their_backend() -> None:
    plan = build(
        Plan,
        {
            "rules": [
                {"match": "fc1", "weight": int_(4, group=32)},
                {"match": "fc2", **W8A8},
                {"match": "point", "weight": {"name": "nvfp4"}},
            ]
        },
    )
    net = plan.apply(Net()).requires_grad_(False)
    run = execution("int8", "int4", "fake")
    chosen = {each.name: each.backend for each in run.place(net)}
    assert chosen == {"point": "fake", "fc1": "int4", "fc2": "int8"}
    assert differences(net, run.apply(net), INPUT)[""].sqnr > 100


@needs_torchao
def test_fp8_products_have_sides_of_multiples_of_16() -> None:
    net = quantized(match="0", net=nn.Sequential(nn.Linear(24, 32)), weight=E4M3, act=dynamic(E4M3))
    with pytest.raises(ValueError, match="inputs and outputs in multiples of 16"):
        execution("torchao").apply(net)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("int8", {"weight": int_(8)}, "int8 takes quantized inputs"),
    ("int8", {"weight": int_(8, group=32), "act": ASYM8}, "a weight scale per output channel"),
    ("int8", {"weight": int_(8, rule="asym"), "act": ASYM8}, "symmetric integer weights"),
    ("int8", {"weight": int_(8), "act": dynamic(E4M3)}, "int8 takes integer inputs"),
    ("int8", {"weight": int_(8), "act": dynamic(int_(8, group=16))}, "an input range per token"),
    ("int4", {"weight": int_(8)}, "int4 takes integer weights of up to 4 bits"),
    ("int4", {"weight": int_(4), "act": ASYM8}, "int4 takes inputs in full precision"),
    ("int4", {"weight": int_(4, group=16)}, "groups of 32, 64, 128, 256 weights, not 16"),
    ("torchao", {"weight": {"name": "nvfp4"}}, "torchao takes int, float and mx weights"),
    ("torchao", {"weight": int_(8, rule="asym")}, "symmetric integer weights with a scale per"),
    ("torchao", {"weight": int_(8), "act": dynamic(int_(8))}, "the rules sym_half and asym"),
    ("torchao", {"weight": int_(8), "act": dynamic(int_(4))}, "8-bit inputs with a range"),
    ("torchao", {"weight": {**E4M3, "group": 16}}, "e4m3 and e5m2 weights with a scale per"),
    ("torchao", {"weight": E4M3, "act": dynamic(E4M3)}, "a GPU of capability 8.9"),
    ("torchao", {"weight": {"name": "mx", "element": "e2m1"}}, "in the format of the mx weights"),
]


@pytest.mark.parametrize(("backend", "rule", "message"), REFUSED)
def test_a_format_that_a_backend_lacks(backend: str, rule: dict[str, Any], message: str) -> None:
    if backend == "torchao":
        pytest.importorskip("torchao")
    with pytest.raises(ValueError, match=message) as error:
        execution(backend).apply(quantized(match="fc.*", **rule))
    assert "no back-end runs 2 (fc1, fc2) of 2 layers" in str(error.value)


def test_execution_refuses() -> None:
    with pytest.raises(ValueError, match="net has no packed weights: apply a plan to it first"):
        execution("fake").apply(Net())
    with pytest.raises(ConfigError, match="backends must name at least one, each once, got"):
        execution("int8", "int8")
    with pytest.raises(ConfigError, match=r"'int9' is not one of .*; did you mean 'int8'"):
        execution("int9")
    real = execution("int8").apply(quantized(**W8A8))
    with pytest.raises(ValueError, match="low-bit kernels pass no gradients to their inputs"):
        real(INPUT.clone().requires_grad_())


@pytest.mark.slow
@pytest.mark.parametrize("backends", [(), ("int8",), ("torchao",), ("fake",)])
def test_compiled_nets_compute_the_same(backends: tuple[str, ...]) -> None:
    """Fake quantization (no back-end) and real kernels."""
    if "torchao" in backends:
        pytest.importorskip("torchao")
    net = quantized(**W8A8)
    run = execution(*backends).apply(net) if backends else net
    compiled = torch.compile(run)
    with torch.no_grad():
        wanted = run(INPUT)
        torch.testing.assert_close(compiled(INPUT), wanted, rtol=0, atol=2e-2)
        gap = float((compiled(INPUT) - wanted).abs().mean() / wanted.abs().mean())
    assert gap < 1e-3  # a fused range may put a number on the other side of a tie


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["int8", "int4", "torchao w8a8", "torchao e4m3"])
def test_kernels_of_a_gpu_agree(case: str) -> None:
    backend, rule, _ = REAL[case]
    net = quantized(net=Net(torch.bfloat16), **rule).to("cuda")
    real, x = execution(backend).apply(net), INPUT.bfloat16().to("cuda")
    for name, gap in differences(net, real, x).items():
        assert gap.largest <= 0.02 * gap.scale, name  # bfloat16 has 8 bits


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 7, 5), (17, 64, 64), (40, 1152, 9)])
def test_integer_products_of_a_gpu_are_exact(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a, b = (
        (HashKeys.of(i, [0]).uniform((rows, k))[0] * 256 - 128).to(torch.int8).to("cuda")
        for i, rows in enumerate((m, n))
    )
    assert torch.equal(int8_matmul(a, b), int8_matmul_reference(a, b))


@pytest.mark.gpu
@needs_torchao
def test_fp8_inputs_on_a_gpu() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU of capability 8.9")
    net = quantized(net=Net(torch.bfloat16), weight=E4M3, act=dynamic(E4M3)).to("cuda")
    real = execution("torchao").apply(net)
    found = differences(net, real, INPUT.bfloat16().to("cuda"))
    assert all(gap.largest <= 0.02 * gap.scale for gap in found.values())

"""Packed storage, quantized layers, plans and reports: invariants and every bad input."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genvis.config import ConfigError, build, dump
from genvis.quant.floating import Float
from genvis.quant.format import Format
from genvis.quant.integer import Integer
from genvis.quant.minifloat import E2M1, E3M2, E4M3
from genvis.quant.modules import PackedConv2d, PackedLinear
from genvis.quant.mx import MX
from genvis.quant.nvfp4 import NVFP4
from genvis.quant.packing import pack, packed_bytes, unpack
from genvis.quant.plan import Plan, Rule
from genvis.quant.report import state_bytes, summary
from genvis.random import HashKeys

INT8, INT4 = Integer(bits=8), Integer(bits=4, group=8)
FORMATS: list[Format] = [
    INT4,
    Integer(bits=3),
    INT8,
    Integer(bits=5, rule="asym", group="tensor"),
    Integer(bits=4, scale="power_of_two"),
    Float(element=E4M3),
    Float(element=E3M2, group=8),
    MX(element=E2M1, group=8),
    NVFP4(group=8),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return HashKeys.of(seed, [0]).normal(shape)[0]


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks: Any = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8, bias=False)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(normal(*p.shape, seed=100 * seed + i))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).mean((2, 3))
        for block in self.blocks:
            h = h + block(h).relu()
        return self.head(self.norm(h))


def plan(*rules: tuple[str, Format | None]) -> Plan:
    return Plan(rules=tuple(Rule(match=match, weight=weight) for match, weight in rules))


MIXED = plan(("head", None), ("stem", INT8), ("blocks.*", INT4))


# packing


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 63, 1001])
def test_packing_is_exact_in_value_and_size(bits: int, count: int) -> None:
    codes = (HashKeys.of(bits, [0]).uniform((count,))[0] * 2**bits).long()
    stream = pack(codes, bits)
    assert stream.dtype == torch.uint8
    assert len(stream) == packed_bytes(count, bits) == math.ceil(count * bits / 8)
    assert torch.equal(unpack(stream, bits, count).long(), codes)


def test_stream_is_little_endian() -> None:
    assert pack(torch.tensor([1, 2, 3]), 4).tolist() == [0x21, 0x03]
    assert pack(torch.tensor([0b101, 0b011, 0b110]), 3).tolist() == [0b10_011_101, 0b1]
    assert pack(torch.tensor([200, 7]), 8).tolist() == [200, 7]


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[0, 8\) for 3 bits, got 0\.\.8"):
        pack(torch.tensor([0, 8]), 3)
    with pytest.raises(ValueError, match="got -1"):
        pack(torch.tensor([-1, 0]), 3)
    with pytest.raises(ValueError, match=r"bits must be in 2\.\.8, got 9"):
        pack(torch.tensor([0]), 9)
    with pytest.raises(ValueError, match=r"5 codes of 4 bits are \(3,\) bytes, got \(4,\)"):
        unpack(torch.zeros(4, dtype=torch.uint8), 4, 5)


# layers

CONVOLUTIONS: list[dict[str, Any]] = [
    {"padding": 1},
    {"stride": 2, "padding": (1, 0), "bias": False},
    {"padding": "same", "dilation": 2},
    {"groups": 2, "padding": 2, "padding_mode": "reflect"},
    {"padding": "same", "padding_mode": "circular"},
]


def twin(layer: Any, format: Format) -> Any:
    """The reference: an ordinary layer whose weight is the fake-quantized one."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.copy_(format.fake(layer.weight))
    return layer


def cases() -> list[tuple[Any, Any, Tensor]]:
    linears = [
        (PackedLinear, nn.Linear(16, 6, bias=bias), normal(5, 7, 16)) for bias in (True, False)
    ]
    convolutions = [
        (PackedConv2d, nn.Conv2d(16, 4, 3, **kwargs), normal(2, 16, 9, 7))
        for kwargs in CONVOLUTIONS
    ]
    return [*linears, *convolutions]


@pytest.mark.parametrize("case", range(len(CONVOLUTIONS) + 2))
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_layer_equals_fake_quantization(case: int, format: Format) -> None:
    make, layer, x = cases()[case]
    packed, reference = make(layer, format), twin(layer, format)
    assert torch.equal(packed(x), reference(x))
    assert torch.equal(packed.weight, reference.weight)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    packed(ours).square().sum().backward()
    reference(theirs).square().sum().backward()
    assert ours.grad is not None and theirs.grad is not None  # noqa: PT018
    assert torch.equal(ours.grad, theirs.grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16
        assert torch.equal(packed(x), reference(x))


@pytest.mark.parametrize("case", range(len(CONVOLUTIONS) + 2))
def test_casting_the_net_keeps_the_scales(case: int) -> None:
    make, layer, x = cases()[case]
    packed = make(layer, INT4)
    scale, weight = packed.scale.clone(), packed.weight
    half = copy.deepcopy(packed).bfloat16()
    assert half.scale.dtype == torch.float32
    assert torch.equal(half.scale, scale)
    assert half(x.bfloat16()).dtype == half.weight.dtype == torch.bfloat16
    assert torch.equal(half.weight, weight.bfloat16())
    assert torch.equal(half.float().weight, weight)
    native = make(layer.bfloat16(), INT4)  # a net that was bfloat16 before it was packed
    assert native(x.bfloat16()).dtype == torch.bfloat16


def test_state_dict_has_codes_scale_and_bias() -> None:
    state = PackedLinear(nn.Linear(16, 6), INT4).state_dict()
    assert {k: (tuple(v.shape), v.dtype) for k, v in state.items()} == {
        "codes": ((48,), torch.uint8),
        "scale": ((6, 2), torch.float32),
        "bias": ((6,), torch.float32),
    }


# plans


def test_first_match_wins_and_the_rest_stays() -> None:
    net = Net()
    head, stem, blocks = MIXED.rules
    wanted = {"stem": stem, "blocks.0": blocks, "blocks.1": blocks, "head": head}
    assert MIXED.assignments(net) == wanted
    two = plan(("blocks.0", INT8), ("blocks.*", INT4))
    first, rest = two.rules
    wanted = {"stem": None, "blocks.0": first, "blocks.1": rest, "head": None}
    assert two.assignments(net) == wanted
    with pytest.raises(ValueError, match=r"'block' matches no"):  # the whole name, not a part of it
        plan(("block", INT4)).assignments(net)


def test_apply_leaves_its_argument_alone_and_equals_fake_quantization() -> None:
    net, x = Net(), normal(4, 3, 6, 6, seed=7)
    before, output = copy.deepcopy(net.state_dict()), net(x)
    quantized = MIXED.apply(net)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())
    assert torch.equal(net(x), output)
    reference = copy.deepcopy(net)
    reference.stem = twin(net.stem, INT8)
    reference.blocks = nn.ModuleList([twin(block, INT4) for block in net.blocks])
    assert torch.equal(quantized(x), reference(x))
    assert type(quantized.head) is nn.Linear
    with torch.no_grad():
        for p in quantized.parameters():
            p.zero_()
    assert torch.equal(net(x), output)  # nothing is shared


def test_full_precision_plan_is_the_net() -> None:
    net, x = Net(), normal(4, 3, 6, 6)
    quantized = plan((".*", None)).apply(net)
    assert torch.equal(quantized(x), net(x))
    assert quantized.state_dict().keys() == net.state_dict().keys()


def test_a_layer_used_twice_is_packed_once() -> None:
    layer = nn.Linear(16, 16)
    quantized = plan((".*", INT4)).apply(nn.Sequential(layer, nn.ReLU(), layer))
    assert isinstance(quantized, nn.Sequential)
    assert quantized[0] is quantized[2]
    assert type(quantized[0]) is PackedLinear


def test_a_lone_layer_and_a_subclass() -> None:
    assert type(plan((".*", INT4)).apply(nn.Linear(16, 6))) is PackedLinear

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.linear(input, 2 * self.weight, self.bias)

    with pytest.raises(ValueError, match=r"matches no Linear or Conv2d, of: none"):
        plan((".*", INT4)).apply(Doubled(16, 6))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (plan(("blok.*", INT4)), r"rules\[0\]: 'blok.*' matches no Linear or Conv2d, of: stem, "),
        (plan((".*", INT8), ("norm", INT4)), r"rules\[1\]: 'norm' matches no Linear or Conv2d"),
        (plan((".*", INT8), ("head", None)), r"rules\[1\]: earlier rules take all that 'head'"),
        (plan(("head", INT8), ("head", INT8)), r"rules\[1\]: earlier rules take all"),
        (plan(("stem", INT8), ("blocks.*", Integer(bits=4, group=3))), "blocks.0: group must div"),
    ],
)
def test_plan_refuses(broken: Plan, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        broken.apply(Net())
    assert "\n" not in str(error.value)


def test_plan_refuses_a_net_quantized_already_and_bad_weights() -> None:
    with pytest.raises(ValueError, match="net is quantized already: 'stem' is"):
        MIXED.apply(MIXED.apply(Net()))
    net = Net()
    with torch.no_grad():
        net.stem.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="stem: weight must be finite"):
        MIXED.apply(net)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "rules must not be empty"),
        ([{"match": "a(", "weight": None}], r"rules.0: 'a(' is not a regular expression: "),
        ([{"match": "a"}], "rules.0.weight: missing"),
        ([{"match": "a", "weight": {"name": "int", "bits": 9}}], "bits must be in 2..8, got 9"),
        (
            [{"match": "a", "weight": {"name": "itn"}}],
            "'itn' is not one of int, float, mx, nvfp4, log_sqrt2; did you mean 'int'",
        ),
        ([{"match": "a", "weight": None, "smooth": 0.5}], "Rule has no field 'smooth'"),
    ],
)
def test_plan_config_refuses(rules: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(Plan, {"rules": rules})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_plan_is_plain_data() -> None:
    data = json.loads(json.dumps(dump(MIXED)))
    assert data["rules"][1] == {
        "match": "stem",
        "weight": {
            "name": "int", "bits": 8, "group": None, "rule": "sym_full", "scale": "float32",
        },
        "act": None,
        "transforms": [],
        "rounding": {"name": "nearest"},
    }  # fmt: skip
    assert build(Plan, data) == MIXED


def test_a_plan_written_before_there_were_activations_is_the_same_plan() -> None:
    old = {"name": "int", "bits": 4, "group": 8, "rule": "sym_full"}
    assert build(Plan, {"rules": [{"match": ".*", "weight": old}]}) == plan((".*", INT4))


# storage and report


def test_saved_and_loaded_net_is_the_same_net(tmp_path: Path) -> None:
    quantized, x = MIXED.apply(Net()), normal(4, 3, 6, 6)
    save_file(quantized.state_dict(), tmp_path / "model.safetensors")
    fresh = MIXED.apply(Net(seed=1))
    assert not torch.equal(fresh(x), quantized(x))
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert torch.equal(fresh(x), quantized(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        plan(("stem", INT8)).apply(Net()).load_state_dict(quantized.state_dict())


def test_reported_bytes_are_the_bytes_on_disk(tmp_path: Path) -> None:
    net = Net()
    quantized = MIXED.apply(net)
    report = summary(net, quantized)
    for model, reported in ((net, report.bytes_before), (quantized, report.bytes_after)):
        path = tmp_path / "model.safetensors"
        save_file(model.state_dict(), path)
        header = int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size - 8 - header == reported == state_bytes(model)
    saved = sum(layer.bytes_before - layer.bytes_after for layer in report.layers)
    assert report.bytes_before - report.bytes_after == saved > 0


def test_summary_says_what_changed() -> None:
    net = Net()
    with torch.no_grad():
        net.blocks[1].weight.copy_(torch.eye(8))
    report = summary(net, MIXED.apply(net))
    stem, first, second = report.layers
    assert [layer.name for layer in report.layers] == ["stem", "blocks.0", "blocks.1"]
    assert [layer.weights for layer in report.layers] == [8 * 27, 64, 64]
    assert report.weights == 8 * 27 + 128
    assert (second.changed, second.sqnr) == (0, math.inf)  # an identity is exact in any format
    moved = [
        int((f.fake(w) != w).sum())
        for f, w in ((INT8, net.stem.weight), (INT4, net.blocks[0].weight))
    ]
    assert [stem.changed, first.changed] == moved
    assert report.share_changed == sum(moved) / report.weights
    assert (first.bytes_before, first.bytes_after) == (256, 32 + 32)
    w = net.blocks[0].weight.detach()
    w_hat = INT4.fake(w)
    expected = 10 * math.log10(w.square().sum() / (w - w_hat).square().sum())
    assert first.sqnr == pytest.approx(expected, abs=1e-3)


def test_summary_refuses_two_nets_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="original has no layer '0' with a weight of shape"):
        summary(
            nn.Sequential(nn.Linear(8, 16)),
            plan(("0", INT4)).apply(nn.Sequential(nn.Linear(16, 8))),
        )

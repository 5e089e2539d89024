"""Number formats: closed forms, the standards' own bytes, invariants, gradients, bad input."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genvis.config import ConfigError
from genvis.quant import ELEMENTS, FORMATS
from genvis.quant.blocks import count, split
from genvis.quant.floating import Float
from genvis.quant.format import Format
from genvis.quant.integer import Integer
from genvis.quant.logarithmic import LogSqrt2
from genvis.quant.minifloat import E2M1, E2M3, E3M0, E3M2, E4M3, E5M2, Minifloat
from genvis.quant.mx import MX
from genvis.quant.nvfp4 import NVFP4
from genvis.quant.packing import pack
from genvis.quant.powers import ceil_log2, floor_log2, from_byte, to_byte
from genvis.quant.report import sqnr
from genvis.random import HashKeys

RULES: tuple[Any, ...] = ("sym_full", "sym_narrow", "sym_half", "sym_noclip", "asym")
MX_RULES: tuple[Any, ...] = ("floor", "ceil", "rceil", "even")
NUMBERS = (E4M3, E5M2, E3M2, E2M3, E2M1, E3M0, Minifloat(exponent=1, mantissa=2))
GROUPS: tuple[Any, ...] = (None, 8, "tensor")

INTEGERS = [
    *(Integer(bits=b, rule=r) for b in range(2, 9) for r in (RULES[0], RULES[-1])),
    *(Integer(bits=4, group=g, rule=r) for g in GROUPS for r in RULES),
    *(Integer(bits=5, rule=r, scale="power_of_two") for r in RULES),
]
FLOATS = [
    *(Float(element=e) for e in NUMBERS),
    *(Float(element=E2M1, group=g) for g in GROUPS),
    *(Float(element=e, group=8, scale="power_of_two") for e in NUMBERS),
]
BLOCKED = [
    *(MX(element=e, rule=r) for e in NUMBERS[:5] for r in MX_RULES),
    MX(element=E2M1, group=16),
    NVFP4(),
    NVFP4(tensor_scale=False),
]
STORED: list[Format] = [*INTEGERS, *FLOATS, *BLOCKED]
EVERY: list[Format] = [*STORED, LogSqrt2(bits=4), LogSqrt2(bits=8, group=8)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return HashKeys.of(seed, [0]).normal(shape)[0]


def sample(format: Format) -> Tensor:
    """(6, 64) with rows of very different size; never negative where that is asked for."""
    x = normal(6, 64) * torch.logspace(-2, 2, 6)[:, None]
    return x.abs() if isinstance(format, LogSqrt2) else x


# powers of two


def test_logarithms_are_exact_next_to_powers_of_two() -> None:
    powers = 2.0 ** torch.arange(-126, 127).float()
    exponents = torch.arange(-126, 127)
    above = torch.nextafter(powers, torch.tensor(torch.inf))
    below = torch.nextafter(powers, torch.tensor(0.0))
    assert torch.equal(floor_log2(powers), exponents.int())
    assert torch.equal(ceil_log2(powers), exponents.int())
    assert torch.equal(floor_log2(above), exponents.int())
    assert torch.equal(ceil_log2(above), exponents.int() + 1)
    assert torch.equal(floor_log2(below), exponents.int() - 1)
    assert torch.equal(ceil_log2(below), exponents.int())


def test_e8m0_is_the_standards() -> None:
    exponents = torch.arange(-127, 128)
    codes = to_byte(exponents)
    assert torch.equal(codes, torch.arange(255, dtype=torch.uint8))
    assert torch.equal(from_byte(codes).double(), 2.0 ** exponents.double())
    assert torch.equal(from_byte(codes), codes.view(torch.float8_e8m0fnu).float())
    assert to_byte(torch.tensor([-200, 300])).tolist() == [0, 254]


# small floating-point numbers

GRIDS = {
    E2M1: [0, 0.5, 1, 1.5, 2, 3, 4, 6],
    E3M0: [0, 0.25, 0.5, 1, 2, 4, 8, 16],
    Minifloat(exponent=1, mantissa=2): [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75],
    Minifloat(exponent=2, mantissa=0): [0, 1, 2, 4],
    Minifloat(exponent=2, mantissa=1, specials="ieee"): [0, 0.5, 1, 1.5, 2, 3],
    Minifloat(exponent=2, mantissa=1, specials="nan"): [0, 0.5, 1, 1.5, 2, 3, 4],
}


@pytest.mark.parametrize("number", GRIDS, ids=str)
def test_grids_by_hand(number: Minifloat) -> None:
    assert number.grid().tolist() == GRIDS[number]
    assert number.max == GRIDS[number][-1]


def test_largest_values() -> None:
    assert [e.max for e in NUMBERS] == [448, 57344, 28, 7.5, 6, 16, 1.75]
    assert [e.bits for e in NUMBERS] == [8, 8, 6, 6, 4, 4, 4]


@pytest.mark.parametrize(
    ("number", "kind"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)], ids=str
)
def test_eight_bit_codes_are_torchs_bytes(number: Minifloat, kind: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    theirs = codes.view(kind).float()
    torch.testing.assert_close(number.value(codes), theirs, rtol=0, atol=0, equal_nan=True)
    x = (normal(4096) * 10.0 ** (8 * HashKeys.of(1, [0]).uniform((4096,))[0] - 5)).clamp(
        -number.max, number.max
    )
    assert torch.equal(number.round(x).to(torch.uint8), x.to(kind).view(torch.uint8))


@pytest.mark.parametrize("number", [*NUMBERS, *GRIDS], ids=str)
def test_rounding_is_to_the_nearest_and_ties_go_to_the_even_code(number: Minifloat) -> None:
    grid = number.grid().double()
    ties = (grid[1:] + grid[:-1]) / 2
    float_ties = ties.float()
    x = torch.cat(
        [
            grid.float(),
            float_ties,
            torch.nextafter(float_ties, torch.tensor(0.0)),
            torch.nextafter(float_ties, torch.tensor(torch.inf)),
            normal(256).abs() * number.max / 2,
            torch.tensor([number.max * 2, torch.inf]),
        ]
    )
    gaps = (x.double().clamp_max(number.max)[:, None] - grid).abs()
    nearest = gaps == gaps.amin(1, keepdim=True)
    assert nearest.sum(1).max() == 2
    even = torch.arange(len(grid)) % 2 == 0
    # of two nearest the even one
    wanted = (nearest * (1 + even.int())).argmax(1)
    assert torch.equal(number.round(x), wanted)
    assert torch.equal(number.value(number.round(-x)), -grid[wanted].float())


@pytest.mark.parametrize("number", [*NUMBERS, *GRIDS], ids=str)
def test_every_number_is_its_own_nearest(number: Minifloat) -> None:
    codes = torch.arange(2**number.bits)
    values = number.value(codes)
    kept = values.isfinite() & (codes != 2 ** (number.bits - 1))  # minus zero becomes zero
    assert torch.equal(number.round(values[kept]), codes[kept])
    assert int(values.isfinite().sum()) == 2 * len(number.grid())


# every format


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_a_format_is_plain_data(format: Format) -> None:
    assert FORMATS.build(FORMATS.dump(format)) == format


@pytest.mark.parametrize("format", STORED, ids=str)
@pytest.mark.parametrize("shape", [(6, 32), (3, 8, 2, 2), (5, 96)])
def test_packed_is_fake_bit_for_bit(format: Format, shape: tuple[int, ...]) -> None:
    weight = normal(*shape)
    parts = format.pack(weight)
    assert torch.equal(format.unpack(parts, shape), format.fake(weight))
    assert sum(part.nbytes for part in parts.values()) == format.storage_bytes(shape)
    codes, params = format.encode(weight)
    assert torch.equal(format.decode(codes, params), format.fake(weight))


@pytest.mark.parametrize(
    ("format", "bits_of_a_weight"),  # of a weight (64, 512)
    [
        (Integer(bits=4), 4 + 32 / 512),
        (Integer(bits=4, group=128), 4 + 32 / 128),
        (Integer(bits=3, group=128, scale="power_of_two"), 3 + 8 / 128),
        (Integer(bits=8, rule="asym"), 8 + 40 / 512),
        (Integer(bits=8, group="tensor"), 8 + 32 / 512 / 64),
        (Float(element=E4M3), 8 + 32 / 512),
        (Float(element=E3M2, group=128), 6 + 32 / 128),
        (MX(element=E2M1), 4.25),
        (MX(element=E2M3), 6.25),
        (MX(element=E4M3), 8.25),
        (NVFP4(), 4.5 + 32 / 512 / 64),
        (NVFP4(tensor_scale=False), 4.5),
    ],
    ids=str,
)
def test_bits_of_a_weight(format: Format, bits_of_a_weight: float) -> None:
    assert 8 * format.storage_bytes((64, 512)) / (64 * 512) == bits_of_a_weight


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_quantizing_twice_with_the_same_scale_changes_nothing(format: Format) -> None:
    x = sample(format)
    codes, params = format.encode(x)
    once = format.fake(x, params)
    assert torch.equal(format.fake(once, params), once)
    assert torch.equal(format.encode(once, params)[0] * once.sign(), codes * once.sign())


EXACT_TWICE = [
    *(f for f in FLOATS if f.scale == "power_of_two"),
    *(f for f in BLOCKED if isinstance(f, MX)),
    *(f for f in INTEGERS if f.scale == "power_of_two" and f.rule in ("sym_full", "sym_narrow")),
]


@pytest.mark.parametrize("format", EXACT_TWICE, ids=str)
def test_powers_of_two_are_found_again(format: Format) -> None:
    once = format.fake(sample(format))
    assert torch.equal(format.fake(once), once)


@pytest.mark.parametrize(
    "format",
    [
        *(Integer(bits=b, rule=r) for b in range(2, 9) for r in RULES if r != "sym_half"),
        *(Float(element=e) for e in NUMBERS),
        NVFP4(),
        LogSqrt2(bits=4),
    ],
    ids=str,
)
def test_quantizing_twice_changes_nothing(format: Format) -> None:
    # s' = (qmax s) / qmax may round to the neighbour of s, so values agree to a few ulp
    once = format.fake(sample(format))
    torch.testing.assert_close(format.fake(once), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_zero_is_exact_and_zero_rows_leave_the_others_alone(format: Format) -> None:
    x = sample(format)
    x[2] = 0
    x[4] = 1e-42  # denormal: its scale would underflow
    x[0, 3] = 0
    quantized = format.fake(x)
    assert (quantized[2] == 0).all()
    assert quantized[0, 3] == 0
    assert quantized.isfinite().all()
    assert all((value >= 0).all() for value in format.encode(x)[1].values())
    if not format.spans_rows:
        others = torch.tensor([0, 1, 3, 5])
        assert torch.equal(quantized[others], format.fake(x[others]))


@pytest.mark.parametrize("format", [f for f in EVERY if not f.spans_rows], ids=str)
def test_a_row_does_not_see_the_others(format: Format) -> None:
    x = sample(format)
    assert torch.equal(format.fake(x)[1:3], format.fake(x[1:3]))


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_codes_fit_their_bits(format: Format) -> None:
    codes, _ = format.encode(1000 * sample(format))
    bits = 1 + format.bits if isinstance(format, LogSqrt2) else format.code_bits
    assert codes.dtype == torch.int16
    assert codes.shape == (6, 64)
    assert format.first_code <= codes.min()
    assert codes.max() < format.first_code + 2**bits


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_fake_keeps_the_type_and_nan(format: Format) -> None:
    x = sample(format)
    half = x.bfloat16()
    assert torch.equal(format.fake(half), format.fake(half.float()).bfloat16())
    x[1, 5] = math.nan
    params = format.fit(x.new_zeros(1, 1), x.new_ones(1, 1))
    if format.group == "tensor":
        assert format.fake(x, params)[1, 5].isnan()
    assert format.fake(x)[1, 5].isnan()


@pytest.mark.parametrize("rule", RULES[:4])
def test_error_is_at_most_half_a_step(rule: Any) -> None:
    for bits in range(2, 9):
        format = Integer(bits=bits, rule=rule, group=8)
        x = sample(format)
        step = format.step(format.encode(x)[1])[..., None]
        moved = split(format.fake(x) - x, 8).abs()
        # noclip lets the extreme of the wider side of the grid be one step away
        assert (moved <= step * (0.5 + 1e-4)).all(), bits


def test_integer_rules_by_hand() -> None:
    x = torch.tensor([[-3.0, 0.5, 1.5, 2.0]])  # 3 bits: -4..3
    for rule in RULES[:2]:
        codes, params = Integer(bits=3, rule=rule).encode(x)
        assert params["scale"].tolist() == [[1.0]]
        assert codes.tolist() == [[-3, 0, 2, 2]]  # half goes to even
    x = torch.tensor([[-3.5, 3.5, 0.0, 1.0]])
    codes, params = Integer(bits=3, rule="sym_half").encode(x)
    assert params["scale"].tolist() == [[1.0]]
    assert codes.tolist() == [[-4, 3, 0, 1]]  # the extremes are ties: one clips, one does not
    codes, params = Integer(bits=3, rule="sym_noclip").encode(torch.tensor([[-8.0, 2.0, 5.0]]))
    assert params["scale"].tolist() == [[2.0]]  # 8 / 4, more than 5 / 3
    assert codes.tolist() == [[-4, 1, 2]]
    codes, params = Integer(bits=2, rule="asym").encode(torch.tensor([[-1.0, 2.0, 0.9]]))
    assert (params["scale"].tolist(), params["zero"].tolist()) == ([[1.0]], [[1]])
    assert codes.tolist() == [[0, 3, 2]]
    codes, params = Integer(bits=2, rule="asym").encode(torch.tensor([[6.0, 2.0, 5.0]]))
    assert (params["scale"].tolist(), params["zero"].tolist()) == ([[2.0]], [[0]])  # from 0
    assert codes.tolist() == [[3, 1, 2]]
    params = Integer(bits=3, scale="power_of_two").encode(torch.tensor([[3.5, -1.0]]))[1]
    assert from_byte(params["exponent"]).tolist() == [[2.0]]  # 3.5 / 3 rounded up


def test_stored_integers_are_offset_by_the_lowest_code() -> None:
    weight = torch.tensor([[-3.0, 0.0, 1.0, 2.0]])
    parts = Integer(bits=3).pack(weight)
    assert list(parts) == ["codes", "scale"]
    assert torch.equal(parts["codes"], pack(torch.tensor([1, 4, 5, 6]), 3))
    assert torch.equal(parts["scale"], torch.tensor([[1.0]]))
    assert list(Integer(bits=3, rule="asym").pack(weight)) == ["codes", "scale", "zero"]
    assert list(Integer(bits=3, scale="power_of_two").pack(weight)) == ["codes", "exponent"]


def test_groups_of_a_convolution_run_along_its_flattened_inputs() -> None:
    weight = normal(4, 8, 3, 3)
    for format in (Integer(bits=4, group=12), MX(element=E2M1, group=12)):
        flat = format.fake(weight.flatten(1))
        assert torch.equal(format.fake(weight).flatten(1), flat)


@pytest.mark.parametrize(
    ("rule", "scale", "values"),  # 7 and 3.4 in E2M1: up to 6, 4 with its full exponent
    [
        ("floor", 1, [6, 3, -0.5]),  # 7 is clipped
        ("rceil", 2, [8, 3, -0.0]),  # 7 / 2 = 3.5 is a tie, 3.4 / 2 is nearer to 1.5
        ("ceil", 2, [8, 3, -0.0]),
        ("even", 2, [8, 3, -0.0]),  # 7 = 1.75 * 4 rounds up to 2 * 4
    ],
)
def test_microscaling_by_hand(rule: Any, scale: float, values: list[float]) -> None:
    format = MX(element=E2M1, rule=rule)
    x = torch.tensor([[7.0, 3.4, -0.4] + [0.0] * 29])
    assert from_byte(format.encode(x)[1]["exponent"]).item() == scale
    assert format.fake(x)[0, :3].tolist() == values


def test_rceil_never_clips_and_floor_may() -> None:
    x = normal(64, 64) * torch.logspace(-9, 9, 64)[:, None]
    for number in NUMBERS[:5]:
        for rule, clips in (("rceil", False), ("floor", True)):
            chosen: Any = {"rule": rule}
            format = MX(element=number, **chosen)
            v = split(x, 32).abs() / format.step(format.encode(x)[1])[..., None]
            assert bool((v > number.max).any()) is clips


def test_nvfp4_by_hand() -> None:
    x = torch.zeros(1, 32)
    x[0, :3] = torch.tensor([2688.0, 448.0, 1344.0])  # t = 1: scale 448
    x[0, 16:19] = torch.tensor([6.0, 2.4, -0.01])  # scale 1
    parts = NVFP4().encode(x)[1]
    assert parts["tensor_scale"].tolist() == [[1.0]]
    assert E4M3.value(parts["scale"]).tolist() == [[448.0, 1.0]]
    assert NVFP4().fake(x)[0, :3].tolist() == [2688, 448, 1344]
    assert NVFP4().fake(x)[0, 16:19].tolist() == [6, 2, 0]
    tiny = NVFP4(tensor_scale=False).encode(x / 1e6)[1]
    assert E4M3.value(tiny["scale"])[0, 1] == 2.0**-6  # not a subnormal number


def test_log_sqrt2_by_hand() -> None:
    root = math.sqrt(2)
    x = torch.tensor([[0.8, 0.8 / root, 0.4, 0.8 / root**15, 0.8 / root**16, 0.0]])
    codes, params = LogSqrt2(bits=4).encode(x)
    assert params["scale"].tolist() == [[pytest.approx(0.8)]]
    assert codes.tolist() == [[0, 1, 2, 15, 16, 16]]  # 16 is zero
    wanted = torch.tensor([[0.8, 0.8 / root, 0.4, 0.8 / root**15, 0.0, 0.0]])
    torch.testing.assert_close(LogSqrt2(bits=4).fake(x), wanted)
    p = normal(8, 64).mul(2).softmax(-1)
    ratio = LogSqrt2(bits=8).fake(p) / p  # at most half a step of sqrt 2 away
    assert (ratio.log2().abs() <= 0.25 + 1e-5).all()
    assert LogSqrt2(bits=4).fake(-p).isnan().all()


SQNR: list[tuple[Format, float, float | None]] = [  # Gaussian, Gaussian with 8 columns x 30
    (Integer(bits=8), 42.1, 27.1),
    (Integer(bits=6), 29.8, 14.9),
    (Integer(bits=4), 16.9, 8.9),
    (Integer(bits=4, rule="asym"), 18.0, 9.1),
    (Integer(bits=4, group=128), 18.6, 12.1),
    (Integer(bits=4, group=32), 20.2, 17.9),
    (Integer(bits=3, group=128), 11.2, 10.6),
    (Float(element=E4M3), 31.6, 33.6),
    (Float(element=E5M2), 25.6, 27.4),
    (Float(element=E2M3), 31.1, 20.4),
    (Float(element=E3M2), 25.6, 27.2),
    (Float(element=E2M1), 18.8, 9.5),
    (Float(element=E2M1, scale="power_of_two"), 16.5, 8.9),
    (Float(element=E2M1, group=128), 19.3, 14.0),
    (Float(element=E3M0, group=128), 14.3, None),  # depends on where the columns are
    (MX(element=E4M3), 30.7, 27.4),
    (MX(element=E2M3), 30.9, 27.3),
    (MX(element=E2M1, rule="floor"), 18.8, 15.7),
    (MX(element=E2M1, rule="rceil"), 18.7, 16.4),
    (MX(element=E2M1, rule="even"), 19.0, 16.6),
    (NVFP4(), 20.4, 21.6),
]


@pytest.mark.parametrize(("format", "gaussian", "outliers"), SQNR, ids=str)
def test_sqnr_of_a_matrix(format: Format, gaussian: float, outliers: float | None) -> None:
    weight = normal(256, 1024)
    assert sqnr(weight, format.fake(weight)) == pytest.approx(gaussian, abs=1)
    weight[:, ::128] *= 30
    if outliers is not None:
        assert sqnr(weight, format.fake(weight)) == pytest.approx(outliers, abs=1.5)


# gradients


@pytest.mark.parametrize("format", EVERY, ids=str)
def test_gradients_pass_where_nothing_is_clipped(format: Format) -> None:
    x = sample(format).requires_grad_()
    with torch.no_grad():
        params = format.encode(x)[1]
        v = format.in_steps(split(x, format.group), format.step(params)[..., None])
        inside = format.inside(v, params).reshape(x.shape)
    weight = normal(6, 64, seed=1)
    (format.fake(x) * weight).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, weight * inside)
    assert inside.float().mean() > (0.1 if isinstance(format, LogSqrt2) else 0.7)


@pytest.mark.parametrize(
    ("format", "low", "high"),
    [
        (Integer(bits=4, group="tensor"), -8, 7),
        (Integer(bits=4, group="tensor", rule="sym_narrow"), -7, 7),
        (Integer(bits=4, group="tensor", rule="asym"), -5, 10),
        (Float(element=E2M1, group="tensor"), -6, 6),
    ],
    ids=str,
)
def test_gradient_to_the_step(format: Format, low: float, high: float) -> None:
    """Of what is clipped the end of the grid, of the rest its rounding error."""
    params: dict[str, Tensor] = {"scale": torch.tensor([[0.3]], requires_grad=True)}
    if format == Integer(bits=4, group="tensor", rule="asym"):
        params["zero"] = torch.tensor([[5]], dtype=torch.uint8)
    x = torch.tensor([[-90.0, 90.0, 0.4, -0.7]])
    for i in range(4):
        params["scale"].grad = None
        format.fake(x, params)[0, i].backward()
        v = x[0, i] / 0.3
        rounded = format.value(format.round(v.reshape(1, 1, 1), params), params).item()
        wanted = [low, high, rounded - v, rounded - v][i]
        grad = params["scale"].grad
        assert grad is not None
        assert grad.item() == pytest.approx(float(wanted), abs=1e-5)


# bad input


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "int", "bits": 9}, "bits must be in 2..8, got 9"),
        ({"name": "int", "bits": 1}, "bits must be in 2..8, got 1"),
        ({"name": "int", "bits": 4, "group": 0}, "group: must be a number of at least 1, null or"),
        ({"name": "int", "bits": 4, "group": "row"}, "null or tensor, got 'row'"),
        ({"name": "int", "bits": 4, "group": True}, "null or tensor, got True"),
        ({"name": "int", "bits": 4, "rule": "sym"}, "rule: should be 'sym_full', 'sym_narrow',"),
        ({"name": "int", "bits": 4, "scale": "bf16"}, "scale: should be 'float32' or 'power_of_"),
        ({"name": "int", "bits": "4"}, "bits: should be a valid integer"),
        ({"name": "int"}, "bits: missing"),
        ({"name": "float", "element": "e4m2"}, "'e4m2' is not one of minifloat, e4m3, e5m2"),
        (
            {"name": "float", "element": {"name": "minifloat", "exponent": 5, "mantissa": 3}},
            "element: exponent must be at least 1, mantissa at least 0 and both with the sign",
        ),
        (
            {
                "name": "float",
                "element": {"name": "minifloat", "exponent": 1, "mantissa": 2, "specials": "inf"},
            },
            "specials: should be 'none', 'nan' or 'ieee'",
        ),
        ({"name": "mx", "element": "e2m1", "group": 0}, "group must be at least 1, got 0"),
        ({"name": "mx", "element": "e2m1", "rule": "round"}, "rule: should be 'floor', 'ceil'"),
        ({"name": "nvfp4", "group": -1}, "group must be at least 1, got -1"),
        ({"name": "log_sqrt2", "bits": 12}, "bits must be in 2..8, got 12"),
        ({"name": "fp8"}, "'fp8' is not one of int, float, mx, nvfp4, log_sqrt2"),
    ],
)
def test_format_refuses(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        FORMATS.build(data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_minifloat_needs_a_number_besides_zero() -> None:
    with pytest.raises(ConfigError, match="leave no number but 0 in 2 bits"):
        Minifloat(exponent=1, mantissa=0, specials="nan")


@pytest.mark.parametrize("format", [Integer(bits=4), Float(element=E4M3), NVFP4()], ids=str)
def test_weights_that_cannot_be_represented(format: Format) -> None:
    for bad in (math.nan, math.inf):
        weight = normal(6, 16)
        weight[1, 2] = bad
        with pytest.raises(ValueError, match="weight must be finite"):
            format.pack(weight)
    with pytest.raises(ValueError, match=r"expected numbers \(rows, inputs"):
        format.pack(normal(6))
    with pytest.raises(ValueError, match="none of them 0"):
        format.pack(torch.zeros(6, 0))


def test_a_group_must_divide_the_inputs() -> None:
    for format in (Integer(bits=4, group=5), MX(element=E2M1), NVFP4(group=12)):
        message = f"group must divide the inputs of a row, got {format.group} for 16"
        with pytest.raises(ValueError, match=message):
            format.pack(normal(6, 16))
        with pytest.raises(ValueError, match=message):
            format.storage_bytes((6, 16))
    assert count((6, 4, 2, 2), 4) == (6, 4)


def test_log_sqrt2_is_not_for_weights() -> None:
    with pytest.raises(ValueError, match="log_sqrt2 is for activations"):
        LogSqrt2(bits=4).pack(normal(6, 16).abs())
    with pytest.raises(ValueError, match="log_sqrt2 is for activations"):
        LogSqrt2(bits=4).storage_bytes((6, 16))


def test_table_of_elements_holds_the_standards_formats() -> None:
    assert [ELEMENTS.resolve(name) for name in ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")] == [
        E4M3, E5M2, E3M2, E2M3, E2M1,
    ]  # fmt: skip
    assert [e.specials for e in (E4M3, E5M2, E3M2, E2M3, E2M1)] == ["nan", "ieee"] + ["none"] * 3

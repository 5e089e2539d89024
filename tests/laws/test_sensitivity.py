"""Sensitivity: what each metric says, the same table however it is made, costs, and plans."""

import itertools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.compression import METRICS, sensitivity
from genvis.compression.allocation import Budget, allocate
from genvis.compression.costs import bit_operations, file_bytes, multiply_adds, seconds
from genvis.compression.fingerprint import fingerprint
from genvis.compression.layers import layers_of, quantized, swapped
from genvis.compression.metrics import (
    MSE,
    SQNR,
    SSIM,
    Hessian,
    ImageMSE,
    KLLogits,
    Subject,
    hessian_traces,
    ssim,
)
from genvis.compression.rules import plan_of
from genvis.compression.sensitivity import Group, Sensitivity, grouped, measure, read
from genvis.images import to_uint8
from genvis.quant.activations import Dynamic, Static
from genvis.quant.integer import Integer
from genvis.quant.plan import Plan, Rule
from genvis.quant.report import sqnr, state_bytes
from genvis.quant.transforms.scaling import Smooth
from genvis.random import HashKeys
from tests.launch import launch

TOKENS = Dynamic(format=Integer(bits=8, rule="asym"))
CHOICES = {
    "w2": Rule(match=".*", weight=Integer(bits=2)),
    "w4": Rule(match=".*", weight=Integer(bits=4)),
    "w8": Rule(match=".*", weight=Integer(bits=8)),
    "w4a8": Rule(match="blocks.*", weight=Integer(bits=4), act=TOKENS),
}
OUTPUT = (Group(name="all", match=".*", metric=SQNR()),)


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 3)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(HashKeys.of(100 * seed + i, [0]).normal(p.shape)[0] / 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).flatten(2).mT
        for layer in self.blocks:
            h = h + layer(h).relu()
        return self.head(h)


def subject(seed: int = 0) -> Subject:
    net = Net(seed).eval()
    calls = tuple((HashKeys.of(9, [i, i + 1]).normal((3, 4, 4)),) for i in range(3))
    noise = HashKeys.of(4, range(5)).normal((3, 8, 8))
    wanted = HashKeys.of(5, range(5)).normal((64, 3))
    return Subject(
        net,
        calls,
        images=lambda: net(noise).detach().mT.reshape(5, 3, 8, 8).tanh(),
        loss=lambda: (net(noise) - wanted).square().mean(),
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sensitivity, Path]:
    folder = tmp_path_factory.mktemp("sensitivity") / "all"
    return measure(subject(), CHOICES, OUTPUT, folder), folder


def test_a_value_is_that_of_a_plan_with_one_layer(table: tuple[Sensitivity, Path]) -> None:
    found, given = table[0], subject()
    plain = given.outputs()
    assert found.layers == ("stem", "blocks.0", "blocks.1", "blocks.2", "head")
    assert found.choices == ("w2", "w4", "w8", "w4a8")
    for i, c in itertools.product(range(5), range(4)):
        name, rule = found.layers[i], CHOICES[found.choices[c]]
        if c == 3 and "blocks" not in name:
            assert found.values[i, c].isnan()
            assert found.losses[i, c] == math.inf
            continue
        one = Plan(rules=(replace(rule, match=name),)).apply(given.net)
        changed = replace(given, net=one).outputs()
        assert float(found.values[i, c]) == sqnr(plain, changed)
        noise = (changed - plain).double().square().sum() / plain.double().square().sum()
        torch.testing.assert_close(found.losses[i, c], noise)
    assert (found.losses[:, :3].diff() < 0).all()  # bits help
    assert torch.equal(given.outputs(), plain)  # and the net is as it was


def test_killed_and_rerun_gives_the_same_table(
    table: tuple[Sensitivity, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, made = table
    calls = 0

    def stopping(*given: Any) -> nn.Module:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return quantized(*given)

    folder = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(sensitivity, "quantized", stopping)
        with pytest.raises(KeyboardInterrupt):
            measure(subject(), CHOICES, OUTPUT, folder)
    assert sorted(file.name for file in (folder / "layers").iterdir()) == ["stem.json"]
    with pytest.raises(ValueError, match=r"sensitivity.json: no such file"):
        read(folder, CHOICES, OUTPUT)
    again = measure(subject(), CHOICES, OUTPUT, folder)
    assert torch.equal(again.values.nan_to_num(), whole.values.nan_to_num())
    name = "sensitivity.json"
    assert (folder / name).read_bytes() == (made / name).read_bytes()
    shutil.rmtree(folder / "layers")  # a finished table is only read
    assert torch.equal(read(folder, CHOICES, OUTPUT).losses, whole.losses)


SCRIPT = """
import sys
from genvis.compression.sensitivity import measure
from tests.laws.test_sensitivity import CHOICES, OUTPUT, subject
measure(subject(), CHOICES, OUTPUT, sys.argv[1])
"""


def test_two_processes_make_the_same_table(table: tuple[Sensitivity, Path], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    launch(2, tmp_path / "script.py", tmp_path / "table")
    name = "sensitivity.json"
    assert (tmp_path / "table" / name).read_bytes() == (table[1] / name).read_bytes()


def test_a_folder_is_of_its_weights_inputs_choices_and_groups(
    table: tuple[Sensitivity, Path],
) -> None:
    folder = table[1]
    other = replace(subject(), calls=subject().calls[:2])
    sqnr_as_mse = (replace(OUTPUT[0], metric=MSE()),)
    fewer = {name: CHOICES[name] for name in ("w2", "w4")}
    for given, choices, groups, where in (
        (subject(seed=1), CHOICES, OUTPUT, "weights"),
        (other, CHOICES, OUTPUT, "calls"),
        (subject(), fewer, OUTPUT, "choices"),
        (subject(), CHOICES, sqnr_as_mse, "groups"),
    ):
        with pytest.raises(ValueError, match=f"holds a run with another config: {where}"):
            measure(given, choices, groups, folder)
    with pytest.raises(ValueError, match="is of other choices or groups"):
        read(folder, {**CHOICES, "w6": CHOICES["w4"]}, OUTPUT)
    lines = json.loads((folder / "sensitivity.json").read_text())
    assert lines[0]["metric"] == "sqnr"
    assert lines[0]["values"]["w4a8"] is None


def test_fingerprints_tell_values_types_and_shapes_apart() -> None:
    x = torch.arange(6.0)
    different = [x, x.double(), x.view(2, 3), x + 1, (x, x), {"a": x}, [x, 1], [x, 2], None]
    assert len({fingerprint(value) for value in different}) == len(different)
    assert fingerprint((x, {"a": 1})) == fingerprint((x.clone(), {"a": 1}))


METRIC_CASES: dict[str, Any] = {
    "sqnr": SQNR(), "mse": MSE(), "kl_logits": KLLogits(), "ssim": SSIM(),
    "image_mse": ImageMSE(), "hessian": Hessian(),
}  # fmt: skip


@pytest.mark.parametrize("name", METRIC_CASES)
def test_every_metric_finds_fewer_bits_worse(name: str, tmp_path: Path) -> None:
    assert METRICS.name_of(METRIC_CASES[name]) == name
    choices = {n: CHOICES[n] for n in ("w2", "w4", "w8")}
    choices["exact"] = Rule(match=".*", weight=None)
    groups = (Group(name="all", match=".*", metric=METRIC_CASES[name]),)
    losses = measure(subject(), choices, groups, tmp_path / "table").losses
    assert (losses >= 0).all()
    assert torch.equal(losses[:, 3], torch.zeros(5, dtype=torch.float64))
    if name != "hessian":  # an estimated trace may be below 0
        assert (losses[:, :3].diff() <= 0).all()
    assert losses[:, 0].sum() > 4 * losses[:, 1].sum() > 0


def test_groups_have_metrics_of_their_own_and_the_first_decides(tmp_path: Path) -> None:
    groups = (
        Group(name="content", match="blocks.*", metric=SSIM()),
        Group(name="quality", match=".*", metric=MSE(), share=2.0),
    )
    found = measure(subject(), {"w4": CHOICES["w4"]}, groups, tmp_path / "table")
    assert found.groups == (1, 0, 0, 0, 1)
    assert found.members(0) == [1, 2, 3]
    given = subject()
    assert given.images is not None
    plain = to_uint8(given.images())
    with swapped(
        given.net, given.net.blocks[1], quantized(given.net, "blocks.1", CHOICES["w4"], ())
    ):
        values = ssim(to_uint8(given.images()), plain), float(given.outputs().sum())
    assert float(found.values[2, 0]) == values[0]
    assert values[1] != float(given.outputs().sum())


def test_what_takes_data_is_calibrated_on_the_calls(tmp_path: Path) -> None:
    static = Static(format=Integer(bits=8, rule="asym", group="tensor"))
    choices = {
        "static": Rule(match="blocks.*", weight=None, act=static),
        "smooth": Rule(match=".*", weight=Integer(bits=4), act=TOKENS, transforms=(Smooth(),)),
    }
    values = measure(subject(), choices, OUTPUT, tmp_path / "table").values
    assert (values[1:4, 0] > 25).all()
    assert (values[:, 1] > 10).all()


# the Hessian


def quadratic(seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Callable[[], Tensor]]:
    """A loss w'Aw / 2 of two weights, whose Hessian is A."""
    a = HashKeys.of(seed, range(10)).normal((10,)).double()
    a = a @ a.T
    weights = {"one": torch.ones(2, 3).double(), "two": torch.ones(4).double()}

    def loss() -> Tensor:
        w = torch.cat([weight.flatten() for weight in weights.values()])
        return w @ a @ w / 2

    return weights, a, loss


def test_traces_are_those_of_the_blocks() -> None:
    """Within five standard errors; without spread where the Hessian is diagonal."""
    weights, a, loss = quadratic()
    probes = 400
    found = hessian_traces(loss, weights, probes, seed=1)
    for name, rows in (("one", slice(0, 6)), ("two", slice(6, 10))):
        exact, block = float(a[rows, rows].trace()), a[rows]
        off = block.square().sum() - a[rows, rows].diagonal().square().sum()
        assert found[name] == pytest.approx(exact, abs=5 * float(2 * off / probes) ** 0.5)
        assert found[name] != exact
    assert hessian_traces(loss, weights, 3, seed=1) == hessian_traces(loss, weights, 3, seed=1)
    assert not any(weight.requires_grad for weight in weights.values())
    diagonal = {"w": torch.ones(5).double()}
    scale = torch.arange(5.0).double()
    traces = hessian_traces(lambda: (scale * diagonal["w"] ** 2).sum() / 2, diagonal, 1, seed=0)
    assert traces["w"] == pytest.approx(10)


def test_the_hessian_foretells_what_rounding_costs(tmp_path: Path) -> None:
    """Second order: half the trace times the mean squared change, summed as if it were white."""
    given = subject()
    assert given.loss is not None
    groups = (Group(name="all", match=".*", metric=Hessian(probes=64)),)
    choices = {"w4": CHOICES["w4"]}
    table = measure(given, choices, groups, tmp_path / "table")
    layer = given.net.head  # the loss is quadratic in it
    after = quantized(given.net, "head", CHOICES["w4"], ())
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0].detach()))
    given.loss()
    handle.remove()
    x = inputs[0].flatten(0, 1).double()
    exact = 2 * float((x.T @ x).trace()) * 3 / (len(x) * 3)  # of the Hessian's block
    moved = float((after.weight - layer.weight).detach().double().square().sum())
    assert float(table.values[4, 0]) == pytest.approx(exact / 48 * moved, rel=0.15)


# costs


def test_bytes_are_those_of_the_file() -> None:
    given = subject()
    names = list(layers_of(given.net))
    cost = file_bytes(given.net, names, CHOICES)
    rest = state_bytes(given.net) - sum(state_bytes(given.net.get_submodule(n)) for n in names)
    for column, rule in enumerate(CHOICES.values()):
        mine = [i for i, name in enumerate(names) if cost[i, column]]
        assert len(mine) == (3 if column == 3 else 5)
        whole = Plan(rules=(rule,)).apply(given.net)
        plain = sum(state_bytes(given.net.get_submodule(names[i])) for i in set(range(5)) - {*mine})
        assert state_bytes(whole) == rest + plain + int(cost[:, column].sum())


def test_operations_are_counted_by_call_and_token() -> None:
    given = subject()
    names = list(layers_of(given.net))
    found = multiply_adds(given.net, names, given.calls)
    tokens = 3 * 2 * 16
    assert found == {
        "stem": tokens * 16 * 27, "blocks.0": tokens * 256, "blocks.1": tokens * 256,
        "blocks.2": tokens * 256, "head": tokens * 48,
    }  # fmt: skip
    cost = bit_operations(given.net, names, CHOICES, given.calls)
    assert cost[1].tolist() == [
        tokens * 256 * w * a for w, a in ((2, 16), (4, 16), (8, 16), (4, 8))
    ]


def test_seconds_are_measured_where_a_choice_is_possible() -> None:
    given = subject()
    found = seconds(given.net, ["stem", "blocks.0"], CHOICES, given.calls, effort=0.001)
    assert (found[1] > 0).all()
    assert (found[0] > 0).tolist() == [True, True, True, False]


# the way to a plan


def test_the_plan_is_within_the_budget_and_beats_a_uniform_one(tmp_path: Path) -> None:
    """On a net whose first and last layers matter most."""
    given = subject()
    with torch.no_grad():
        for layer in given.net.blocks:
            layer.weight.mul_(0.1)
    bits = {f"w{b}": Rule(match=".*", weight=Integer(bits=b)) for b in (2, 3, 4, 6, 8)}
    found = measure(given, bits, OUTPUT, tmp_path / "table")
    names = list(found.layers)
    cost, plain = file_bytes(given.net, names, bits), given.outputs()
    for column, rule in ((1, bits["w3"]), (2, bits["w4"])):
        uniform = Plan(rules=(rule,)).apply(given.net)
        budget = Budget("bytes", cost, float(cost[:, column].sum()))
        allocation = allocate(found.losses, [budget])
        chosen = {n: list(bits.values())[c] for n, c in zip(names, allocation.chosen, strict=True)}
        mixed = plan_of(chosen).apply(given.net)
        assert state_bytes(mixed) <= state_bytes(uniform)
        quality = [sqnr(plain, replace(given, net=net).outputs()) for net in (uniform, mixed)]
        assert quality[1] > quality[0] + 1


# refusals


@pytest.mark.parametrize(
    ("choices", "groups", "message"),
    [
        ({}, OUTPUT, "choices: none is for the layer 'stem'"),
        ({"w4": replace(CHOICES["w4"], match="blocks.*")}, OUTPUT, "none is for the layer 'stem'"),
        ({**CHOICES, "x": Rule(match="no", weight=None)}, OUTPUT, "choices.x: 'no' matches none"),
        (CHOICES, (replace(OUTPUT[0], match="stem"),), "groups: none matches the layer 'blocks.0'"),
        (CHOICES, (*OUTPUT, replace(OUTPUT[0], name="b")), "groups.1: '.*' is left with no layer"),
        (CHOICES, OUTPUT * 2, "groups must have different names"),
        (CHOICES, (replace(OUTPUT[0], metric=SSIM()),), "the subject must be able to draw"),
        (CHOICES, (replace(OUTPUT[0], metric=ImageMSE()),), "image_mse compares images"),
        (CHOICES, (replace(OUTPUT[0], metric=Hessian()),), "the subject must have one"),
        (
            {"w4": replace(CHOICES["w4"], weight=Integer(bits=4, group=7))},
            OUTPUT,
            "stem: none of the choices fits it: group must divide",
        ),
    ],
)
def test_refusals(choices: Any, groups: Any, message: str, tmp_path: Path) -> None:
    bare = replace(subject(), images=None, loss=None)
    with pytest.raises(ValueError, match=message):
        measure(bare, choices, groups, tmp_path / "table")


def test_more_refusals(tmp_path: Path) -> None:
    training = subject()
    training.net.train()
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        measure(training, CHOICES, OUTPUT, tmp_path / "table")
    hessian = (Group(name="all", match=".*", metric=Hessian(probes=1)),)
    with pytest.raises(ValueError, match="hessian sees weights alone"):
        measure(subject(), {"w4a8": replace(CHOICES["w4a8"], match=".*")}, hessian, tmp_path / "t")
    with pytest.raises(ValueError, match="is quantized already"):
        measure(replace(subject(), net=Plan(rules=(CHOICES["w4"],)).apply(Net()).eval()), CHOICES,
                OUTPUT, tmp_path / "q")  # fmt: skip
    with pytest.raises(ValueError, match="share must be positive"):
        replace(OUTPUT[0], share=0.0)
    with pytest.raises(ValueError, match="window must be odd"):
        SSIM(window=4)
    with pytest.raises(ValueError, match="ssim under 9 x 9 pixels"):
        ssim(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8).byte(), 9)
    assert grouped(["a", "b"], OUTPUT) == {"a": 0, "b": 0}

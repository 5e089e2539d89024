"""Training through quantization: what trains is what is packed, and recovers what rounding took."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.compression.recovery import packed
from genvis.config import ConfigError, build, dump
from genvis.objectives import OBJECTIVES
from genvis.quant.activations import Dynamic, Static
from genvis.quant.aware import AwareLayer, QuantizeAware, aware_layers, packed_state
from genvis.quant.floating import Float
from genvis.quant.integer import Integer
from genvis.quant.minifloat import E2M1
from genvis.quant.mx import MX
from genvis.quant.observers import EMA, MSE
from genvis.quant.plan import Plan, Rule
from genvis.quant.rounding import NEAREST
from genvis.quant.transforms.low_rank import LowRank
from genvis.quant.transforms.rotate import Rotate
from genvis.quant.transforms.scaling import Smooth
from genvis.quant.transforms.split import Split
from genvis.random import HashKeys
from genvis.samplers.base import load_generator
from genvis.samplers.generator import Generator
from genvis.training.fit import fit
from genvis.training.recipe import Recipe
from genvis.types import Batch, Cond
from tests.laws.scale_models import VAR, made, saved

W3, TOKENS = Integer(bits=3), Dynamic(format=Integer(bits=8, rule="asym"))
STATIC = Static(format=Integer(bits=8, rule="asym", group="tensor"), observer=EMA(momentum=0.5))
RULES = (
    Rule(match="stem", weight=Integer(bits=4, rule="asym"), act=STATIC),
    Rule(match="mix.0", weight=W3, act=TOKENS, transforms=(Rotate(),)),
    Rule(match="mix.1", weight=Integer(bits=2, group=4, rule="sym_half"), act=TOKENS),
    Rule(match="mix.2", weight=W3, transforms=(Split(at=(6,)), LowRank(rank=1))),
    Rule(match="head", weight=None, act=TOKENS),
)
FLOATS = (
    Rule(match="stem", weight=Float(element=E2M1)),
    Rule(match=".*", weight=MX(element=E2M1, group=4)),
)


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 12, 3, padding=1, padding_mode="reflect")
        self.mix = nn.ModuleList(nn.Linear(12, 12, bias=i > 0) for i in range(3))
        self.head = nn.Linear(12, 4)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(HashKeys.of(100 * seed + i, [0]).normal(p.shape)[0] / 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).flatten(2).mT  # (B, L, 12)
        for layer in self.mix:
            h = h + layer(h).relu()
        return self.head(h)


def pictures(seed: int = 1, rows: int = 6) -> Tensor:
    return HashKeys.of(seed, range(rows)).normal((2, 4, 4))


def trained(change: QuantizeAware, steps: int = 8) -> nn.Module:
    """A net that was moved by gradients, in evaluation mode."""
    net = change.apply(Net()).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for step in range(steps):
        x = pictures(step)
        optimizer.zero_grad()
        (net(x) - Net(seed=1)(x)).square().mean().backward()
        optimizer.step()
    return net.eval()


@pytest.mark.parametrize(
    "change",
    [
        QuantizeAware(rules=RULES),
        QuantizeAware(rules=RULES, scales="learned"),
        QuantizeAware(rules=FLOATS),
    ],
    ids=["min_max", "learned", "floats"],
)
def test_what_trains_is_what_is_packed(change: QuantizeAware) -> None:
    """Bit for bit, in a net that knows the plan alone; everything moved, and is in the file."""
    net, fresh = trained(change), change.apply(Net())
    for (name, after), before in zip(net.named_parameters(), fresh.parameters(), strict=True):
        assert not torch.equal(after, before), name
    plain = change.plan.apply(Net(seed=2)).eval()
    plain.load_state_dict(packed_state(net), strict=True)
    again = change.apply(Net(seed=3)).eval()
    again.load_state_dict(net.state_dict(), strict=True)
    x = pictures(99)
    with torch.no_grad():  # with gradients, torch multiplies by another routine
        assert torch.equal(plain(x), net(x))
        assert torch.equal(again(x), net(x))


@pytest.mark.parametrize("scales", ["min_max", "learned"])
def test_training_starts_from_what_the_plan_gives(scales: Any) -> None:
    rules = tuple(rule for rule in RULES if not isinstance(rule.act, Static))
    change = QuantizeAware(rules=rules, scales=scales)
    x = pictures()
    with torch.no_grad():
        assert torch.equal(change.apply(Net())(x), change.plan.apply(Net())(x))


def test_the_gradient_is_that_at_the_rounded_weight() -> None:
    """Straight through, since no weight of a min-max range is clipped."""
    layer = nn.Linear(12, 5)
    aware = AwareLayer(layer, W3, "min_max")
    rounded = copy.deepcopy(layer)
    rounded.weight.data = W3.fake(layer.weight.data)
    x = HashKeys.of(0, range(7)).normal((12,))
    for each in (aware, rounded):
        each(x).square().sum().backward()
    assert torch.equal(aware.latent.weight.grad, rounded.weight.grad)
    assert torch.equal(aware.latent.bias.grad, rounded.bias.grad)


def test_learned_scales_have_the_gradient_of_lsq() -> None:
    """sum grad d / sqrt(numel qmax): d = round(v) - v, or the limit where v is clipped."""
    aware = AwareLayer(nn.Linear(12, 5), W3, "learned")
    aware.scale.data *= 0.6  # so that some are clipped
    upstream = HashKeys.of(3, range(5)).normal((12,))
    (aware.weight * upstream).sum().backward()
    v = aware.latent.weight.detach() / aware.scale.detach()
    d = torch.where(v.round() > 3, 3.0, torch.where(v.round() < -4, -4.0, v.round() - v))
    expected = (upstream * d).sum(1, keepdim=True) / (12 * 3) ** 0.5
    torch.testing.assert_close(aware.scale.grad, expected)


def test_static_ranges_follow_the_observer_and_rest_in_evaluation() -> None:
    net = QuantizeAware(rules=(Rule(match="stem", weight=None, act=STATIC),)).apply(Net())
    x = [pictures(i) for i in range(3)]
    net.eval()(x[0])  # before any training: its own range
    assert net.stem.act.range.isnan().all()
    for each in x[:2]:
        net.train()(each)
    expected = [(each.amin(), each.amax()) for each in x[:2]]
    low, high = ((a + b) / 2 for a, b in zip(*expected, strict=True))
    torch.testing.assert_close(net.stem.act.range, torch.stack([low, high]))
    before = net.stem.act.range.clone()
    net.eval()(x[2])
    assert torch.equal(net.stem.act.range, before)


def flips(weight: float) -> int:
    """How often rounded weights change in the second half of a training whose optimum lies between
    two numbers, damped or not.
    """
    layer = nn.Linear(16, 8, bias=False)
    layer.weight.data = HashKeys.of(0, range(8)).normal((16,))
    aware = AwareLayer(layer, W3, "learned")
    optimizer = torch.optim.SGD([aware.latent.weight], lr=0.05)
    wanted = HashKeys.of(1, range(8)).normal((16,))
    changes, before = 0, None
    for step in range(400):
        optimizer.zero_grad()
        loss = (aware.weight - wanted).square().sum() + weight * min(1.0, step / 200) * (
            aware.unrest()
        )
        loss.backward()
        optimizer.step()
        codes = W3.encode(aware.latent.weight, aware.params())[0]
        if before is not None and step >= 200:
            changes += int((codes != before).sum())
        before = codes
    return changes


def test_damping_ends_oscillation() -> None:
    assert flips(0.0) > 500
    assert flips(2.0) < 5


# through fit

AWARE = {
    "name": "quantize_aware",
    "rules": [
        {"match": "blocks[.].*", "weight": {"name": "int", "bits": 3}, "act": {
            "name": "dynamic", "format": {"name": "int", "bits": 8, "rule": "asym"}}},
    ],
}  # fmt: skip
COMMON = {
    "data": {"name": "digits"},
    "optim": {"lr": 1e-3},
    "steps": 20, "batch": 32, "ema": 0.5, "log_every": 10, "checkpoint_every": 20,
}  # fmt: skip


def ptq(generator: Any) -> Any:
    return generator.changed(Plan(rules=build(QuantizeAware, {"rules": AWARE["rules"]}).rules))


@torch.no_grad()
def apart(a: Any, b: Any, *inputs: Any) -> float:
    return float((a.net(*inputs) - b.net(*inputs)).square().mean())


def check_recovery(teacher: Any, recipe: dict[str, Any], inputs: Any, folder: Path) -> None:
    """A student of 20 steps is closer to its teacher than rounding alone, and packs as it is."""
    student = fit(build(Recipe, recipe), folder / "run")
    assert aware_layers(student.net)
    assert apart(student, teacher, *inputs) < 0.7 * apart(ptq(teacher), teacher, *inputs)
    loaded = load_generator(folder / "run")
    small = packed(loaded)
    small.save_pretrained(folder / "packed")
    found = load_generator(folder / "packed")
    for generator in (loaded, small, found):
        assert torch.equal(generator.net(*inputs), student.net.eval()(*inputs))
    assert not aware_layers(found.net)
    sizes = [(folder / k / "model.safetensors").stat().st_size for k in ("run/model", "packed")]
    assert sizes[1] < 0.5 * sizes[0]
    with pytest.raises(ValueError, match="was not trained with the change quantize_aware"):
        packed(found)
    again = build(Recipe, {**recipe, "init": str(folder / "run"), "steps": 1})
    fit(again, folder / "again")  # from weights that were trained so already


def test_a_denoiser_recovers_what_rounding_took(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path / "teacher")
    taught = {
        "name": "distil_denoiser", "teacher": str(tmp_path / "teacher"),
        "features": r"blocks[.]\d+", "features_weight": 0.1,
    }  # fmt: skip
    recipe = {
        **COMMON,
        "model": {**{"name": "generator"}, **dump(generator.config), "changes": [AWARE]},
        "objective": {"name": "damped", "objective": taught, "weight": 1e-4, "steps": 20},
        "init": str(tmp_path / "teacher"),
    }
    keys = HashKeys.of(5, range(16))
    inputs = keys.normal((1, 8, 8)), keys.uniform().float(), Cond(label=torch.arange(16) % 10)
    teacher = load_generator(tmp_path / "teacher")
    check_recovery(teacher, recipe, inputs, tmp_path)


def test_a_next_scale_network_recovers_what_rounding_took(tmp_path: Path) -> None:
    generator = saved(made(VAR), tmp_path / "vq")
    generator.save_pretrained(tmp_path / "teacher")
    recipe = {
        **COMMON,
        "model": {**{"name": "scale_generator"}, **dump(generator.config), "changes": [AWARE]},
        "objective": {
            "name": "distil_scales", "teacher": str(tmp_path / "teacher"),
            "divergence": {"name": "topkld", "k": 8},
        },
        "init": str(tmp_path / "teacher"),
    }  # fmt: skip
    x = HashKeys.of(5, range(16)).normal((20, 4))
    inputs = x, Cond(label=torch.arange(16) % 10)
    teacher = load_generator(tmp_path / "teacher")
    check_recovery(teacher, recipe, inputs, tmp_path)


# distillation of denoisers


def distilled(generator: Generator, folder: Path, **fields: Any) -> tuple[Any, Generator]:
    generator.save_pretrained(folder / "teacher")
    student = load_generator(folder / "teacher")
    student.net.requires_grad_(True)
    data = {"name": "distil_denoiser", "teacher": str(folder / "teacher"), **fields}
    return OBJECTIVES.build(data).build(student), student


def digits(rows: int = 5) -> Batch:
    images = HashKeys.of(7, range(rows)).normal((3, 8, 8)).clamp(-1, 1)
    return Batch(images, Cond(label=torch.arange(rows) % 10))


def test_a_student_that_is_its_teacher_learns_nothing(generator: Generator, tmp_path: Path) -> None:
    loss, student = distilled(generator, tmp_path, features=r"blocks[.]\d+", drop=0.5)
    keys = HashKeys.of(0, range(5))
    found = loss(student.net, digits(), keys).per_sample
    assert torch.equal(found, torch.zeros(5))
    gradients = torch.autograd.grad(found.sum(), list(student.net.parameters()))
    assert all(not gradient.any() for gradient in gradients)
    with torch.no_grad():
        student.net.blocks[1].mlp.fc2.weight.mul_(1.1)
        assert (loss(student.net, digits(), keys).per_sample > 0).all()


def test_shares_mix_the_teacher_with_the_data(generator: Generator, tmp_path: Path) -> None:
    keys, losses = HashKeys.of(0, range(5)), {}
    for share in (0.0, 0.25, 1.0):
        loss, student = distilled(generator, tmp_path, share=share)
        with torch.no_grad():
            student.net.final_layer.linear.weight.mul_(1.5)
            losses[share] = loss(student.net, digits(), keys).per_sample
    plain = OBJECTIVES.build({"name": "denoising"}).build(student)
    with torch.no_grad():
        assert torch.equal(losses[0.0], plain(student.net, digits(), keys).per_sample)
    torch.testing.assert_close(losses[0.25], 0.25 * losses[1.0] + 0.75 * losses[0.0])


# refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 2.0}, r"share must be in \[0, 1\]"),
        ({"features": "("}, "features: not a regular expression"),
        ({"features": "nothing"}, "features: no module of DiT is named 'nothing'"),
        ({"teacher": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_taught(
    generator: Generator, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        distilled(generator, tmp_path, **fields)


@pytest.mark.parametrize(
    ("rule", "scales", "message"),
    [
        (Rule(match=".*", weight=W3, transforms=(Smooth(),)), "min_max", "rules.0: training rou"),
        (Rule(match="mix.*", weight=Integer(bits=4, group=5)), "min_max", "group must divide"),
        (Rule(match="mix.*", weight=Float(element=E2M1)), "learned", "float32 ones of integers"),
        (Rule(match="nothing", weight=W3), "min_max", "matches no Linear"),
        (
            Rule(match="stem", weight=W3, act=Static(format=STATIC.format, observer=MSE())),
            "min_max",
            "training follows ranges by min_max or ema",
        ),
    ],
)
def test_what_cannot_be_trained(rule: Rule, scales: Any, message: str) -> None:
    assert rule.rounding == NEAREST
    with pytest.raises(ValueError, match=message):
        QuantizeAware(rules=(rule,), scales=scales).apply(Net())


def test_damping_needs_something_to_damp(generator: Generator) -> None:
    data = {"name": "damped", "objective": {"name": "denoising"}, "weight": 1.0, "steps": 5}
    with pytest.raises(ValueError, match="damped is for networks with the change quantize_aware"):
        OBJECTIVES.build(data).build(generator)
    with pytest.raises(ConfigError, match="weight must be at least 0"):
        OBJECTIVES.build({**data, "weight": -1.0})

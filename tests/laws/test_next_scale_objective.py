"""Next-scale prediction: what a token's loss is, which tokens count, and what a teacher changes."""

from dataclasses import dataclass, field, replace
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones import SCALE_BACKBONES
from genvis.checkpoint import save_folder
from genvis.config import ConfigError, build, dump
from genvis.models import MODELS
from genvis.objectives import OBJECTIVES, SCALE_WEIGHTS
from genvis.objectives.next_scale import NextScale, NextScaleLoss
from genvis.random import HashKeys
from genvis.samplers.scale_generator import ScaleGenerator, ScaleGeneratorConfig
from genvis.tokenizers.conv import ConvConfig
from genvis.tokenizers.multi_scale_vq import MultiScaleVQConfig
from genvis.tokenizers.quantizers.multi_scale import MultiScaleConfig
from genvis.types import Batch, Cond, Pyramid

SCALES, CODES, WIDTH, ROWS = (1, 2, 3, 4), 16, 4, 6
COUNTS, LENGTH = [1, 4, 9, 16], 30
VQ = MultiScaleVQConfig(
    nets=ConvConfig(width=8, multipliers=(1, 2), blocks=1, groups=4),
    quantizer=MultiScaleConfig(codes=CODES, width=WIDTH, scales=SCALES),
)
SIZES = {"scales": SCALES, "codes": CODES, "code_width": WIDTH, "num_classes": 3}
NETS = {
    "var": {"name": "var", "width": 16, "depth": 2, "heads": 2},
    "mvar": {"name": "mvar", "width": 16, "depth": 2, "heads": 2, "state": 4, "scan_head": 8},
}


@pytest.fixture(scope="module")
def tokenizer() -> nn.Module:
    torch.manual_seed(0)
    made = VQ.build().eval()
    made.quantize.embedding.weight.data *= 30  # untrained codes are too small to change anything
    return made


@dataclass(eq=False)
class Logits(nn.Module):
    """The same logits (L, V) for every row, whatever it is given; remembers what that was."""

    table: Tensor
    inputs: list[Tensor] = field(default_factory=list)
    conds: list[Cond] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(self.table)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        self.inputs.append(x)
        self.conds.append(cond)
        return self.logits[: x.shape[1] + 1].expand(len(x), -1, -1)


def backbone(name: str) -> nn.Module:
    torch.manual_seed(1)
    net = SCALE_BACKBONES.build({**NETS[name], **SIZES}).build().eval()
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)  # initial gates are nearly closed
    return net


def objective(tokenizer: Any, **fields: Any) -> NextScaleLoss:
    model = SimpleNamespace(
        config=SimpleNamespace(backbone=SimpleNamespace(scales=SCALES)), tokenizer=tokenizer
    )
    return build(NextScale, {"drop": 0.0, **fields}).build(model)


def batch(rows: int = ROWS) -> Batch:
    images = HashKeys.of(7, range(rows)).normal((3, 8, 8)).clamp(-1, 1)
    return Batch(images, Cond(label=torch.arange(rows) % 3))


def keys(rows: int = ROWS) -> HashKeys:
    return HashKeys.of(0, range(rows))


def random_logits() -> Logits:
    return Logits(HashKeys.of(9, range(LENGTH)).normal((CODES,)))


def nll(net: Logits, pyramid: Pyramid) -> Tensor:
    """-log softmax of the right codes (B, L)."""
    logp = net.logits.detach().double().log_softmax(1)
    return -torch.stack([logp[torch.arange(LENGTH), row] for row in torch.cat(pyramid.tokens, 1)])


def test_uniform_logits_cost_log_v_at_every_scale(tokenizer: nn.Module) -> None:
    for smoothing in (0.0, 0.3):
        net = Logits(torch.full((LENGTH, CODES), 2.5))
        found = objective(tokenizer, label_smoothing=smoothing)(net, batch(), keys())
        torch.testing.assert_close(found.per_sample, torch.full((ROWS,), log(CODES)))
        for name in ("1x1", "2x2", "3x3", "4x4", "mean", "tail"):
            expected = torch.full((ROWS,), log(CODES))
            torch.testing.assert_close(found.logs[f"loss_{name}"], expected)


def test_every_token_weighs_the_same(tokenizer: nn.Module) -> None:
    net, pyramid = random_logits(), tokenizer.encode(batch().x)
    found, expected = objective(tokenizer)(net, batch(), keys()), nll(net, pyramid)
    torch.testing.assert_close(found.per_sample.double(), expected.mean(1))
    torch.testing.assert_close(found.logs["loss_mean"].double(), expected.mean(1))
    torch.testing.assert_close(found.logs["loss_tail"].double(), expected[:, -16:].mean(1))
    torch.testing.assert_close(found.logs["loss_1x1"].double(), expected[:, 0])
    torch.testing.assert_close(found.logs["loss_3x3"].double(), expected[:, 5:14].mean(1))


def test_accuracies_count_the_right_codes(tokenizer: nn.Module) -> None:
    tokens = torch.cat(tokenizer.encode(batch(1).x).tokens, 1)[0]
    right = nn.functional.one_hot(tokens, CODES).float()
    right[1:3] = right[1:3].roll(1, dims=1)  # two of four at the second scale
    logs = objective(tokenizer)(Logits(right), batch(1), keys(1)).logs
    found = {name: value.item() for name, value in logs.items() if name.startswith("accuracy")}
    assert found == pytest.approx(
        {
            "accuracy_1x1": 1, "accuracy_2x2": 0.5, "accuracy_3x3": 1, "accuracy_4x4": 1,
            "accuracy_mean": 28 / 30, "accuracy_tail": 1,
        }
    )  # fmt: skip


def test_label_smoothing_mixes_the_target_with_the_uniform(tokenizer: nn.Module) -> None:
    net, pyramid = random_logits(), tokenizer.encode(batch().x)
    found = objective(tokenizer, label_smoothing=0.2)(net, batch(), keys())
    target = 0.8 * nn.functional.one_hot(torch.cat(pyramid.tokens, 1), CODES) + 0.2 / CODES
    logp = net.logits.detach().double().log_softmax(1)
    torch.testing.assert_close(found.per_sample.double(), -(target * logp).sum(2).mean(1))
    plain = nll(net, pyramid).mean(1)  # the logs stay likelihoods
    torch.testing.assert_close(found.logs["loss_mean"].double(), plain)


@pytest.mark.parametrize(
    ("scales", "step", "expected"),
    [
        ({"name": "all"}, 3, [1, 1, 1, 1]),
        ({"name": "first", "count": 2}, 3, [1, 1, 0, 0]),
        ({"name": "last", "skip": 3, "fade": 10}, 0, [1, 1, 1, 1]),
        ({"name": "last", "skip": 3, "fade": 10}, 4, [0.6, 0.6, 0.6, 1]),
        ({"name": "last", "skip": 3, "fade": 10}, 10, [0, 0, 0, 1]),
        ({"name": "progressive", "begin": 2, "steps": 40, "ramp": 4}, 0, [1, 1, 0, 0]),
        ({"name": "progressive", "begin": 2, "steps": 40, "ramp": 4}, 9, [1, 1, 0, 0]),
        ({"name": "progressive", "begin": 2, "steps": 40, "ramp": 4}, 10, [1, 1, 0.25, 0]),
        ({"name": "progressive", "begin": 2, "steps": 40, "ramp": 500}, 12, [1, 1, 0.01, 0]),
        ({"name": "progressive", "begin": 2, "steps": 40, "ramp": 4}, 29, [1, 1, 1, 0]),
        ({"name": "progressive", "begin": 2, "steps": 40, "ramp": 4}, 31, [1, 1, 1, 0.5]),
        ({"name": "progressive", "begin": 2, "steps": 40, "ramp": 4}, 99, [1, 1, 1, 1]),
    ],
)
def test_which_scales_count_at_a_step(
    tokenizer: nn.Module, scales: dict[str, Any], step: int, expected: list[float]
) -> None:
    """The network is not run above the last one; a token weighs 1 / L throughout."""
    assert SCALE_WEIGHTS.build(scales)(4, step) == pytest.approx(expected)
    net, loss = random_logits(), objective(tokenizer, scales=scales)
    found = loss.at(step)(net, batch(), keys())
    parts = nll(net, tokenizer.encode(batch().x)).split(COUNTS, 1)
    total = 5 if scales["name"] == "first" else 30
    wanted = sum(w * part.sum(1) for w, part in zip(expected, parts, strict=True)) / total
    torch.testing.assert_close(found.per_sample.double(), wanted)
    run = 30 if expected[3] else 14 if expected[2] else 5
    assert net.inputs[0].shape == (ROWS, run - 1, WIDTH)
    assert (f"loss_{4}x{4}" in found.logs) == (run == 30)


def test_scales_join_one_by_one_and_evenly() -> None:
    steps = 1000
    for begin in (1, 3, 5):
        weigh = SCALE_WEIGHTS.build({"name": "progressive", "begin": begin, "steps": steps})
        newest = torch.tensor([sum(w > 0 for w in weigh(10, step)) for step in range(steps)])
        assert newest[0] == begin
        assert newest[-1] == 10
        assert set(newest.diff().tolist()) == {0, 1}
        ideal = begin + torch.arange(steps) / steps * (10 - begin)
        assert (newest - ideal).abs().max() <= 0.5


def test_validation_sees_every_scale_that_ever_counts(tokenizer: nn.Module) -> None:
    for scales, run in (
        ({"name": "progressive", "begin": 2, "steps": 9}, 30),
        ({"name": "last", "skip": 3, "fade": 9}, 30),
        ({"name": "first", "count": 3}, 14),
    ):
        net = random_logits()
        level = torch.rand(ROWS, dtype=torch.float64)
        found = objective(tokenizer, scales=scales)(net, batch(), keys(), level)
        expected = nll(net, tokenizer.encode(batch().x))[:, :run].mean(1)
        torch.testing.assert_close(found.per_sample.double(), expected)


@pytest.mark.parametrize("name", NETS)
def test_a_prefix_is_predicted_as_in_the_whole(tokenizer: nn.Module, name: str) -> None:
    net = backbone(name)
    loss = objective(tokenizer, scales={"name": "progressive", "begin": 2, "steps": 40, "ramp": 1})
    with torch.no_grad():
        whole = loss(net, batch(), keys())
        for step, sides in ((0, SCALES[:2]), (15, SCALES[:3]), (40, SCALES)):
            part = loss.at(step)(net, batch(), keys())
            assert len([key for key in part.logs if key.startswith("loss_")]) == len(sides) + 2
            for p in sides:
                for key in (f"loss_{p}x{p}", f"accuracy_{p}x{p}"):
                    torch.testing.assert_close(part.logs[key], whole.logs[key])
            wanted = sum(p * p * whole.logs[f"loss_{p}x{p}"] for p in sides) / LENGTH
            torch.testing.assert_close(part.per_sample, wanted)


@pytest.mark.parametrize("name", NETS)
def test_inputs_are_what_is_known_below_a_token(tokenizer: nn.Module, name: str) -> None:
    """Other pixels that leave the coarse tokens alone leave the coarse losses alone."""
    net, loss = backbone(name), objective(tokenizer)
    first = tokenizer.encode(batch().x)
    other = torch.randint(CODES, (ROWS, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a = loss(net, replace(batch(), x=first.tokens), keys())
        b = loss(net, replace(batch(), x=(*first.tokens[:3], other)), keys())
    assert torch.equal(a.logs["loss_3x3"], b.logs["loss_3x3"])
    assert not torch.equal(a.logs["loss_4x4"], b.logs["loss_4x4"])


@pytest.mark.parametrize("name", NETS)
def test_tokens_train_as_their_images_do(tokenizer: nn.Module, name: str) -> None:
    """Bit for bit, with gradients, in bfloat16 too: tokenizers work in float32."""
    net, loss = backbone(name), objective(tokenizer, drop=0.5)
    cached = replace(batch(), x=tokenizer.encode(batch().x).tokens)
    for dtype in (torch.float32, torch.bfloat16):
        results = []
        for given in (batch(), cached):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                found = loss(net, given, keys())
            gradients = torch.autograd.grad(found.per_sample.sum(), list(net.parameters()))
            results.append((found.per_sample, *gradients))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_rows_are_dropped_by_their_keys_and_never_in_validation(tokenizer: nn.Module) -> None:
    n = 400
    net, loss = random_logits(), objective(tokenizer, drop=0.3)

    def drops(rows: int, given: Tensor | None = None, level: Tensor | None = None) -> Any:
        x = tuple(torch.zeros(rows, count, dtype=torch.int64) for count in COUNTS)
        cond = Cond(label=torch.zeros(rows, dtype=torch.int64), drop=given)
        loss(net, Batch(x, cond), keys(rows), level)
        return net.conds[-1].drop

    drop = drops(n)
    assert drop.double().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / n) ** 0.5)
    assert torch.equal(drops(9), drop[:9])
    given = torch.arange(n) % 2 == 0
    assert torch.equal(drops(n, given), drop | given)
    assert drops(n, level=torch.rand(n)) is None
    assert torch.equal(drops(n, given, torch.rand(n)), given)


def test_a_dropped_row_is_one_without_a_condition(tokenizer: nn.Module) -> None:
    net = backbone("var")
    with torch.no_grad():
        always = objective(tokenizer, drop=1.0)(net, batch(), keys()).per_sample
        given = objective(tokenizer)(net, replace(batch(), cond=batch().cond.dropped()), keys())
        kept = objective(tokenizer)(net, batch(), keys()).per_sample
    assert torch.equal(always, given.per_sample)
    assert not torch.allclose(always, kept)


@pytest.fixture(scope="module")
def saved(tokenizer: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a tokenizer and of what is built on it: teacher, student, and misfits."""
    root = tmp_path_factory.mktemp("models")
    for name, kind in (("vq", tokenizer), ("vq2", VQ.build())):
        config = {"name": "tokenizer", "tokenizer": {"name": "multi_scale_vq", **dump(VQ)}}
        save_folder(root / name, MODELS.dump(MODELS.build(config)), kind.state_dict())
    for name, vq in (("teacher", "vq"), ("student", "vq"), ("stranger", "vq2")):
        plain = {
            "backbone": {**NETS["mvar" if name == "student" else "var"], **SIZES},
            "tokenizer": {"name": "pretrained", "path": str(root / vq)},
        }
        made = build(ScaleGeneratorConfig, plain).build()
        for parameter in made.net.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape)
        made.save_pretrained(root / name)
    return root


def taught(saved: Path, student: str = "student", **fields: Any) -> tuple[Any, ScaleGenerator]:
    model = ScaleGenerator.from_pretrained(saved / student)
    model.net.requires_grad_(True)
    fields = {"name": "distil_scales", "teacher": str(saved / "teacher"), "drop": 0.3, **fields}
    return OBJECTIVES.build(fields).build(model), model


def test_a_student_that_is_its_teacher_has_nothing_to_learn(saved: Path) -> None:
    loss, model = taught(saved, "teacher", temperature=2.0)
    found = loss(model.net, batch(), keys())
    torch.testing.assert_close(found.per_sample, torch.zeros(ROWS), rtol=0, atol=1e-6)
    gradients = torch.autograd.grad(found.per_sample.sum(), list(model.net.parameters()))
    assert max(g.abs().max() for g in gradients) < 1e-6
    loss, other = taught(saved, temperature=2.0)
    found = loss(other.net, batch(), keys())
    assert (found.per_sample > 1e-3).all()
    found.per_sample.sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in loss.teacher.parameters())
    assert not loss.teacher.training


def test_distillation_is_its_formula(saved: Path) -> None:
    """a T^2 KL(teacher || student) + (1 - a) CE; where a = 0 it is plain training."""
    t, a = 3.0, 0.7
    loss, model = taught(saved, temperature=t, share=a, label_smoothing=0.1, drop=0.0)
    plain = build(NextScale, {"drop": 0.0, "label_smoothing": 0.1}).build(model)
    pyramid = model.tokenizer.encode(batch().x)
    with torch.no_grad():
        p, q = (
            (net(pyramid.inputs, batch().cond).double() / t).softmax(2)
            for net in (loss.teacher, model.net)
        )
        kl = (p * (p / q).log()).sum(2).mean(1)
        ce = plain(model.net, batch(), keys()).per_sample
        found = loss(model.net, batch(), keys())
        data, _ = taught(saved, share=0.0, label_smoothing=0.1, drop=0.0)
        assert torch.equal(data(model.net, batch(), keys()).per_sample, ce)
    torch.testing.assert_close(found.per_sample, (a * t**2 * kl + (1 - a) * ce).float())


def test_teacher_and_student_see_the_same_drops_and_scales(saved: Path) -> None:
    loss, model = taught(saved, scales={"name": "last", "skip": 3, "fade": 10}, drop=0.5)
    with torch.no_grad():
        start, middle, end = (loss.at(k)(model.net, batch(), keys()) for k in (0, 5, 10))
        torch.testing.assert_close(middle.per_sample, (start.per_sample + end.per_sample) / 2)
        seen = Logits(torch.zeros(LENGTH, CODES))
        watched = replace(loss, teacher=seen)
        watched(model.net, batch(), keys())
        drop = keys().fold("drop").uniform() < 0.5
        assert torch.equal(seen.conds[0].drop, drop)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"drop": 1.5}, r"drop must be in \[0, 1\] and label_smoothing in \[0, 1\)"),
        ({"scales": {"name": "first", "count": 5}}, "scales.count is 5, the backbone has 4 scales"),
        ({"scales": {"name": "first", "count": 0}}, "count must be at least 1, got 0"),
        ({"scales": {"name": "last", "skip": 4, "fade": 9}}, "scales.skip is 4, the backbone has"),
        ({"scales": {"name": "progressive", "steps": 9}}, "scales.begin is 5, the backbone has 4"),
        ({"scales": {"name": "frist"}}, "'frist' is not one of all, first, last, progressive"),
    ],
)
def test_refusals(tokenizer: nn.Module, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(tokenizer, **fields)


def test_what_cannot_be_trained_or_taught_is_named(saved: Path) -> None:
    for name in ("next_scale", "distil_scales"):
        fields = {"teacher": "nowhere"} if name == "distil_scales" else {}
        plain = SimpleNamespace(config=SimpleNamespace(backbone=object()), tokenizer=None)
        with pytest.raises(ValueError, match="trains next-scale backbones, and object is none"):
            OBJECTIVES.build({"name": name, **fields}).build(plain)
    with pytest.raises(ValueError, match="stranger has another tokenizer than this model"):
        taught(saved, teacher=str(saved / "stranger"))
    with pytest.raises(ConfigError, match="vq: holds a tokenizer, expected a scale_generator"):
        taught(saved, teacher=str(saved / "vq"))
    with pytest.raises(ValueError, match="temperature must be positive and share in"):
        taught(saved, share=1.1)
    _, model = taught(saved)
    for part, value in (("codes", 17), ("scales", (1, 2)), ("num_classes", 7)):
        backbone = replace(model.config.backbone, **{part: value})
        other = replace(model, config=replace(model.config, backbone=backbone))
        teacher = OBJECTIVES.build({"name": "distil_scales", "teacher": str(saved / "teacher")})
        with pytest.raises(ValueError, match=f"teacher .*teacher has {part} .*, this model has"):
            teacher.build(other)

"""Training is a function of its recipe, however it is interrupted, resumed or spread."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from genvis.checkpoint import in_use, load_tensors
from genvis.config import build, dump, override, write_yaml
from genvis.processes.interpolants import Linear
from genvis.random import HashKeys
from genvis.samplers.base import load_generator
from genvis.training.ema import EMA
from genvis.training.fit import NonFiniteLossError, fit
from genvis.training.journal import read_journal
from genvis.training.optim import Optim
from genvis.training.order import Order
from genvis.training.recipe import Recipe
from genvis.types import Batch, Cond
from tests.launch import launch
from tests.laws.stopping import Crash

TINY = {
    "model": {
        "name": "generator",
        "backbone": {
            "name": "dit", "size": 8, "channels": 1, "patch": 4, "width": 32, "depth": 2,
            "heads": 4, "num_classes": 10, "dropout": 0.1,
        },
        "process": {"name": "linear"},
        "prediction": {"name": "velocity"},
        "tokenizer": {"name": "pixels", "channels": 1},
        "sampler": {"steps": 2},
    },
    "data": {"name": "digits"},
    "objective": {"name": "denoising"},
    "optim": {"lr": 1e-3, "warmup": 2, "schedule": "cosine"},
    "steps": 6,
    "batch": 16,
    "log_every": 2,
    "checkpoint_every": 2,
    "callbacks": [{"name": "validation", "every": 3, "count": 32}, {"name": "samples", "every": 6}],
}  # fmt: skip


def recipe(*overrides: str) -> Recipe:
    return build(Recipe, override(TINY, overrides))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(run / "model" / "model.safetensors")


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(recipe(), folder)
    return folder


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6])
def test_resumed_equals_uninterrupted(whole: Path, tmp_path: Path, step: int) -> None:
    """With dropout, warm-up, label dropping and EMA; the log too, but for its timings."""
    flag = tmp_path / "flag"
    flag.touch()
    crash = {"name": "tests.laws.stopping:CrashOnce", "at": step, "flag": str(flag)}
    once = build(Recipe, {**TINY, "callbacks": [*TINY["callbacks"], crash]})
    with pytest.raises(Crash):
        fit(once, tmp_path / "run")
    fit(once, tmp_path / "run")
    assert_equal(weights(whole), weights(tmp_path / "run"))
    logs = [
        [{k: v for k, v in line.items() if k != "images_per_s"} for line in read_journal(folder)]
        for folder in (whole, tmp_path / "run")
    ]
    assert logs[0] == logs[1]
    assert (tmp_path / "run" / "samples" / "step_0000006.png").exists()


def test_a_run_killed_at_a_random_moment_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    """kill -9 after the first checkpoint, wherever it happens to be; then the same again."""
    text = write_yaml(dump(recipe("steps=200", "checkpoint_every=5", "callbacks=[]")))
    (tmp_path / "recipe.yaml").write_text(text)
    command = [sys.executable, "train_scripts/train.py", str(tmp_path / "recipe.yaml"), "--out"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], env=env, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("killed/checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(tmp_path.glob("killed/checkpoints/step_*"))
    assert not (tmp_path / "killed" / "model").exists()
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], env=env, check=True, capture_output=True)
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path) -> None:
    plain = recipe("model.backbone.dropout=0.0", "callbacks=[]")
    fit(plain, tmp_path / "one")
    fit(recipe("model.backbone.dropout=0.0", "callbacks=[]", "accumulate=4"), tmp_path / "four")
    a, b = weights(tmp_path / "one"), weights(tmp_path / "four")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    text = write_yaml(dump(recipe("model.backbone.dropout=0.0", "callbacks=[]")))
    (tmp_path / "recipe.yaml").write_text(text)
    launch(2, "train_scripts/train.py", tmp_path / "recipe.yaml", "--out", tmp_path / "two")
    fit(recipe("model.backbone.dropout=0.0", "callbacks=[]"), tmp_path / "one")
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4)


def test_a_non_finite_loss_stops_the_run_and_spares_the_checkpoint(tmp_path: Path) -> None:
    bad = recipe("optim={lr: 1e30, clip: null}", "callbacks=[]", "checkpoint_every=1")
    with pytest.raises(
        NonFiniteLossError, match=r"at step 2; saved and intact in .*: the checkpoint of step 1\."
    ):
        fit(bad, tmp_path / "run")
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in saved] == ["step_0000001"]
    assert not (tmp_path / "run" / "model").exists()


def test_what_a_run_leaves_behind(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    left = {"run.json", "recipe.yaml", "log.jsonl", "checkpoints", "samples", "model"}
    assert {name for name in names if not name.startswith(".")} == left
    assert {path.name for path in (whole / "samples").iterdir()} == {"step_0000006.png"}
    lines = read_journal(whole)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    validation = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in validation] == [3, 6]
    assert all(f"val_ema_loss_level_{k}" in validation[0] for k in range(8))
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.*") if path.name != ".lock"}
    assert fit(recipe(), whole).config == recipe().model  # a finished run is only read
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_averaged_weights_of_a_checkpoint_are_a_model(whole: Path) -> None:
    last, end = (load_generator(whole / at) for at in ("checkpoints/step_0000006", "."))
    assert last.config == end.config
    for name, tensor in end.net.state_dict().items():
        assert torch.equal(last.net.state_dict()[name], tensor), name


def test_another_recipe_does_not_touch_a_run(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"optim\.lr: 0.5 here, 0.001 there"):
        fit(recipe("optim.lr=0.5"), whole)


def test_a_run_in_use_is_left_alone(whole: Path) -> None:
    with in_use(whole), pytest.raises(ValueError, match="another process is working in this"):
        fit(recipe(), whole)


def test_an_older_record_is_upgraded(whole: Path) -> None:
    """A field that a version adds has its default in the runs of older ones."""
    record = json.loads((whole / "run.json").read_text())
    older = {**record, "config": {k: v for k, v in record["config"].items() if k != "accumulate"}}
    (whole / "run.json").write_text(json.dumps(older))
    fit(recipe(), whole)
    with pytest.raises(ValueError, match="accumulate: 4 here, 1 there"):
        fit(recipe("accumulate=4"), whole)
    (whole / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.backbone.size=16"], r"x must be \(B, 1, 16, 16\)"),
        (["model.backbone.null_class=false"], "no null_class to drop to"),
        (["model.backbone.channels=3"], r"x must be \(B, 3, 8, 8\)"),
        (["model.backbone.learned_variance=true"], "check backbone.channels and learned_variance"),
        (["model.prediction.learned_variance=true"], "nothing would train the learned variance"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_the_folder_is_touched(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(recipe(*overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weights", ["model.safetensors", "model/model.safetensors"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, weights: str) -> None:
    fit(recipe("callbacks=[]"), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    newest = tmp_path / "run" / "checkpoints" / "step_0000006"
    file = newest / weights
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step_0000006: damaged .*remove this folder"):
        fit(recipe("callbacks=[]"), tmp_path / "run")
    shutil.rmtree(newest / "model")
    with pytest.raises(ValueError, match=r"step_0000006: an older version of genvis wrote it"):
        fit(recipe("callbacks=[]"), tmp_path / "run")
    shutil.rmtree(newest)
    fit(recipe("callbacks=[]"), tmp_path / "run")


def test_tensorboard_when_asked(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    fit(recipe("tracker=tensorboard", "callbacks=[]", "steps=2"), tmp_path / "run")
    assert list((tmp_path / "run" / "tracker").rglob("events.out.tfevents.*"))


def test_bf16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    fit(recipe("precision=bf16", "callbacks=[]"), tmp_path / "run")
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float32}
    assert read_journal(tmp_path / "run")[-1]["loss"] < 10


@pytest.mark.parametrize(("batch", "accumulate", "world"), [(12, 1, 1), (12, 2, 1), (12, 1, 3)])
def test_every_example_once_an_epoch(batch: int, accumulate: int, world: int) -> None:
    orders = [Order(30, batch, accumulate, 7, rank, world) for rank in range(world)]
    seen = [
        example
        for step in range(5)
        for micro in range(accumulate)
        for order in orders
        for example in order.examples_at(order.positions(step, micro))
    ]
    assert sorted(seen[:30]) == sorted(seen[30:60]) == list(range(30))
    assert seen[:30] != seen[30:60]
    single = Order(30, batch, 1, 7)
    assert seen == [i for s in range(5) for i in single.examples_at(single.positions(s, 0))]


def test_a_batch_that_cannot_be_shared_is_named() -> None:
    with pytest.raises(ValueError, match="divisible by accumulate x processes, got 10 and 1 x 4"):
        Order(30, 10, 1, 0, 0, 4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    optim = build(Optim, {"lr": 1.0, "warmup": 2, "schedule": schedule})
    assert [optim.lr_at(k, 6) for k in range(6)] == pytest.approx(expected, abs=1e-6)


def test_vectors_and_tables_do_not_decay() -> None:
    net = recipe().model.build().net
    decayed, plain = build(Optim, {"weight_decay": 0.1}).build(net).param_groups
    names = {id(p): name for name, p in net.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    plain_names = {names[id(p)] for p in plain["params"]}
    assert "y_embedder.embedding_table.weight" in plain_names
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert len(plain["params"]) + len(decayed["params"]) == len(names)


def test_ema_of_a_constant_is_the_constant_and_its_decay_warms_up() -> None:
    net = torch.nn.Linear(2, 1, bias=False)
    ema = EMA(net, decay=0.5)
    start = net.weight.detach().clone()
    ema.update(net, 1)
    assert torch.equal(ema.net.weight, start)
    with torch.no_grad():
        net.weight += 1
    ema.update(net, 1)  # decay 2/11 at the first step
    torch.testing.assert_close(ema.net.weight, start + 9 / 11)
    ema.update(net, 1000)  # and 0.5 from then on
    torch.testing.assert_close(ema.net.weight, start + 1 - 0.5 * 2 / 11)


def test_the_denoising_loss_of_a_perfect_network_is_zero() -> None:
    objective = recipe().objective.build(recipe().model.build())
    batch = Batch(torch.rand(64, 1, 8, 8).expand(-1, 3, -1, -1), Cond(label=torch.zeros(64).long()))
    keys = HashKeys.of(0, range(64))
    x0 = batch.x[:, :1]
    eps = keys.fold("noise").normal((1, 8, 8))

    def oracle(x: torch.Tensor, t: torch.Tensor, cond: Cond) -> torch.Tensor:
        alpha, sigma = Linear().coeffs((t / 1000)[:, None, None, None])
        torch.testing.assert_close(x, alpha * x0 + sigma * eps, rtol=0, atol=1e-5)
        return eps - x0

    loss = objective(oracle, batch, keys)
    assert loss.per_sample.shape == (64,)
    assert loss.per_sample.max() < 1e-10
    assert 0 <= loss.level.min() < 0.1 < 0.9 < loss.level.max() < 1


def test_labels_are_dropped_at_the_stated_rate() -> None:
    objective = build(Recipe, override(TINY, ["objective.drop=0.3"])).objective.build(
        recipe().model.build()
    )
    n = 20_000
    seen = []
    batch = Batch(torch.zeros(n, 3, 8, 8), Cond(label=torch.zeros(n).long()))
    objective(lambda x, t, cond: seen.append(cond.drop) or x, batch, HashKeys.of(0, range(n)))
    rate = seen[0].float().mean().item()
    assert rate == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / n) ** 0.5)  # five standard errors


def test_the_journal_is_one_json_object_a_line(whole: Path) -> None:
    for line in (whole / "log.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line)["step"], int)


def test_activations_are_what_the_modules_put_out(tmp_path: Path) -> None:
    """Logged by layer; and watching changes nothing of the training."""
    plain = ["callbacks=[]", "steps=2", "checkpoint_every=2"]
    watch = 'callbacks=[{name: activations, match: "blocks[.][0-9]+", every: 1, count: 8}]'
    fit(recipe(*plain), tmp_path / "plain")
    fit(recipe(watch, *plain[1:]), tmp_path / "watched")
    a, b = weights(tmp_path / "plain"), weights(tmp_path / "watched")
    assert all(torch.equal(a[name], b[name]) for name in a)
    lines = [line for line in read_journal(tmp_path / "watched") if "feature_blocks.0" in line]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line[f"{kind}_blocks.1"] > 0 for line in lines for kind in ("feature", "gradient"))
    watch = "callbacks=[{name: activations, match: nothing}]"
    with pytest.raises(ValueError, match="no module of DiT is named 'nothing'"):
        fit(recipe(watch, "steps=50", "checkpoint_every=50"), tmp_path / "wrong")

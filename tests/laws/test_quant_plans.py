"""The plans in configs/quant fit every network: ours, diffusers' and next-scale ones."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones import BACKBONES, SCALE_BACKBONES
from genvis.config import build, load, override, read_yaml
from genvis.quant.execution import Execution, differences
from genvis.quant.plan import Plan
from genvis.quant.report import sqnr
from genvis.random import HashKeys
from genvis.types import Cond
from tests import pipelines

PLANS = sorted(Path("configs/quant").glob("*.yaml"))
TINY: dict[str, dict[str, Any]] = {"num_classes": 5, "width": 32, "depth": 2, "heads": 4}
MAPS = {"size": 8, "channels": 3, "num_classes": 5}
OURS: dict[str, dict[str, Any]] = {
    "dit": {**MAPS, **TINY},
    "uvit": {**MAPS, **TINY},
    "unet": {**MAPS, "width": 16, "mult": [1, 2], "depth": 1, "attention": [1], "head_width": 8},
    "dim": {**MAPS, **TINY, "attention_every": 2, "head": 16, "state": 8},
    "zigma": {**MAPS, "width": 32, "depth": 2, "state": 8},
}
SCALES: dict[str, dict[str, Any]] = {
    name: {**TINY, "scales": [1, 2, 3], "codes": 11, "code_width": 5} for name in ("var", "mvar")
}
ENDS = (
    r".*(x_embedder|t_embedder|time_embedding|patch_embed|pos_embed|conv_in$|word_embed|"
    r"final_layer|conv_out|decoder_pred|context_embedder|caption_projection).*|head|proj_out"
)


@cache
def net(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A small network with noise on every weight, and what to call it with."""
    torch.manual_seed(0)
    keys = HashKeys.of(0, range(2))
    label, t = Cond(label=torch.tensor([1, 3])), torch.tensor([0.3, 0.8])
    if name in SCALES:
        made = SCALE_BACKBONES.build({"name": name, **SCALES[name]}).build()
        return pipelines.noisy(made, 0.1), (keys.normal((4 + 9, 5)), label)
    if name in OURS:
        made = BACKBONES.build({"name": name, **OURS[name]}).build()
        return pipelines.noisy(made, 0.1), (keys.normal(made.config.shape), 1000 * t, label)
    from genvis.integrations.diffusers_networks import PROMPTED, Told, kind_of

    parts = pipelines.parts(name)
    model = getattr(parts, "unet", None) or parts.transformer
    wrapped = PROMPTED[kind_of(model)](model, Told((16, 16), 2, 3.5)).eval()
    return wrapped, (keys.normal(wrapped.shape), 1000 * t, pipelines.encoded(name, 2))


def reads_text(name: str) -> bool:
    return name in ("sd", "sdxl", "pixart", "sana")


NETS = [*OURS, *SCALES, *pipelines.KINDS]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_rule_has_layers_and_the_ends_stay(path: Path, name: str) -> None:
    plan = load(Plan, path)
    if "text" in path.stem and not reads_text(name):
        with pytest.raises(ValueError, match="matches no Linear or Conv2d"):
            plan.assignments(net(name)[0])
        return
    chosen = plan.assignments(net(name)[0])
    quantized = {layer for layer, rule in chosen.items() if rule is not None}
    assert len(quantized) >= 0.4 * len(chosen)
    assert not [layer for layer in quantized if re.fullmatch(ENDS, layer.removeprefix("model."))]


@pytest.mark.parametrize("name", NETS)
def test_eight_bits_change_little_and_run_on_integers(name: str) -> None:
    original, inputs = net(name)
    quantized = load(Plan, "configs/quant/w8a8.yaml").apply(original)
    run = build(Execution, {"backends": ["int8", "fake"]})
    by = {each.name: each.backend for each in run.place(quantized)}
    assert "int8" in by.values()
    with torch.no_grad():
        wanted, got = original(*inputs), quantized(*inputs)
        real = run.apply(quantized)(*inputs)
    assert sqnr(wanted, got) > 20
    assert not torch.equal(wanted, got)
    assert sqnr(got, real) > sqnr(wanted, got) + 5  # an input on a tie may fall to either side


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_plan_runs(path: Path) -> None:
    name = "sdxl" if "text" in path.stem else "dit"
    original, inputs = net(name)
    with torch.no_grad():
        gap = sqnr(original(*inputs), load(Plan, path).apply(original)(*inputs))
    assert gap > 5


def test_text_keeps_its_first_token() -> None:
    original, _ = net("pixart")
    quantized = load(Plan, "configs/quant/w8a8_text.yaml").apply(original)
    name = "model.transformer_blocks.0.attn2.to_k"
    text: Tensor = HashKeys.of(3, range(2)).normal((8, 16))
    text[:, 0] *= 100  # what the first token of CLIP looks like
    wanted, got = (each.get_submodule(name)(text) for each in (original, quantized))
    torch.testing.assert_close(got[:, 0], wanted[:, 0], rtol=1e-5, atol=1e-4)
    assert sqnr(wanted[:, 1:], got[:, 1:]) > 30


def test_a_finer_scale_is_an_override() -> None:
    data = override(read_yaml("configs/quant/w4a16.yaml"), ["rules.1.weight.group=16"])
    original, inputs = net("dit")
    coarse, fine = (
        build(Plan, each).apply(original) for each in (read_yaml("configs/quant/w4a16.yaml"), data)
    )
    with torch.no_grad():
        wanted = original(*inputs)
        assert sqnr(wanted, fine(*inputs)) > sqnr(wanted, coarse(*inputs)) + 1


def test_four_bit_weights_run_packed() -> None:
    original, inputs = net("dit")
    quantized = load(Plan, "configs/quant/w4a16.yaml").apply(original)
    run = build(Execution, {"backends": ["int4", "fake"]})
    found = differences(quantized, run.apply(quantized), *inputs)
    by = {each.name: each.backend for each in run.place(quantized)}
    assert by["blocks.0.mlp.fc1"] == "int4"
    assert by["blocks.0.adaLN_modulation.1"] == "fake"
    assert found[""].largest <= 1e-5 * found[""].scale


def test_a_plan_for_another_model_is_one_line() -> None:
    data = {"rules": [{"match": "transformer_blocks.*", "weight": {"name": "int", "bits": 8}}]}
    with pytest.raises(
        ValueError, match=r"rules\[0\]: 'transformer_blocks.\*' matches no"
    ) as error:
        build(Plan, data).apply(net("dit")[0])
    assert "\n" not in str(error.value)

"""Every recipe that ships: it loads, its parts fit, its network has the right shape and size. No
weights, no pictures, no downloads: networks are built on the meta device, tokenizers not at all.
"""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from genvis.config import load, read_yaml
from genvis.quant.aware import aware_layers
from genvis.tokenizers.quantizers.multi_scale import MultiScaleConfig
from genvis.training.encoding import Encoding
from genvis.training.recipe import Recipe
from genvis.types import Cond

CONFIGS = Path("configs")
FILES = {str(path.relative_to(CONFIGS)): path for path in sorted(CONFIGS.rglob("*.yaml"))}
RECIPES = [name for name, path in FILES.items() if {"model", "steps"} <= read_yaml(path).keys()]
# trained through quantization: see RECOVERED
CHANGED = [name for name in RECIPES if "changes" in read_yaml(FILES[name])["model"]]
KINDS = {name: read_yaml(FILES[name])["model"]["name"] for name in RECIPES if name not in CHANGED}
GENERATORS = [name for name, kind in KINDS.items() if kind == "generator"]
PYRAMIDS = [name for name, kind in KINDS.items() if kind == "scale_generator"]
IMAGENET = [name for name in GENERATORS if name.startswith("imagenet/")]
DIGITS = [name for name in GENERATORS if name.startswith("digits/backbones/")]
PUBLISHED = {  # millions of parameters
    "imagenet/dit_xl_2.yaml": 675,
    "imagenet/sit_xl_2.yaml": 675,
    "imagenet/uvit_l_2.yaml": 287,
    "imagenet/uvit_h_2.yaml": 501,
    "imagenet/dimr_xl_2r.yaml": 505,
    "imagenet/unet_adm_256.yaml": 554,
    "imagenet/var_d16.yaml": 310,
    "imagenet/var_d20.yaml": 601,
    "imagenet/var_d24.yaml": 1033,
    "imagenet/var_d30.yaml": 2010,
    "imagenet/var_d36_s.yaml": 2354,
    "imagenet/mvar_d16.yaml": 464,
    "imagenet/mvar_d20.yaml": 901,
    "imagenet/mvar_d24.yaml": 1550,
    "imagenet/mvar_d30.yaml": 3017,
}
# epochs, batch, learning rate for 256 images, its last share, the last weight decay
VAR = {
    "var_d16": (200, 768, 1e-4, 0.1, None),
    "var_d20": (250, 768, 1e-4, 0.1, None),
    "var_d24": (350, 768, 8e-5, 0.01, None),
    "var_d30": (350, 1024, 8e-5, 0.01, 0.08),
    "var_d36_s": (350, 768, 8e-5, 0.01, 0.08),
    "mvar_d16": (200, 768, 1e-4, 0.1, None),
    "mvar_d20": (250, 768, 1e-4, 0.1, None),
    "mvar_d24": (350, 768, 8e-5, 0.01, None),
    "mvar_d30": (350, 1024, 8e-5, 0.01, 0.08),
}


def network(recipe: Recipe) -> nn.Module:
    with torch.device("meta"):
        return recipe.model.backbone.build()


def condition(model: Any) -> Cond:
    """Of two rows, with a text as the model's encoder would make it."""
    encoder = getattr(model, "text", None)
    text = None if encoder is None else torch.empty(2, encoder.length, encoder.width)
    return Cond(label=torch.empty(2, dtype=torch.int64), text=text)


def size(name: str) -> int:
    return sum(p.numel() for p in network(load(Recipe, FILES[name])).parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_and_says_what_it_is(name: str) -> None:
    assert load(Recipe, FILES[name]).steps
    assert FILES[name].read_text().startswith("# ")


@pytest.mark.parametrize("name", GENERATORS)
def test_the_parts_of_a_generator_fit(name: str) -> None:
    recipe = load(Recipe, FILES[name])
    model = recipe.model
    recipe.objective.build(SimpleNamespace(config=model, tokenizer=None))
    times = model.sampler.grid(model.process, model.sampler.steps)
    assert len(times) == model.sampler.steps + 1
    if model.sampler.guidance.scale != 1 or recipe.objective.drop:
        assert getattr(model.backbone, "null_class", True)


@pytest.mark.parametrize("name", GENERATORS)
def test_the_network_puts_out_what_the_prediction_asks_for(name: str) -> None:
    recipe = load(Recipe, FILES[name])
    model, net = recipe.model, network(recipe)
    with FakeTensorMode(allow_non_fake_inputs=True):  # meta tensors that say "cpu", for autocast
        net = net.to_empty(device="cpu")
        x, t = torch.empty(2, *model.backbone.shape), torch.empty(2)
        cond = condition(model)
        staged = hasattr(recipe.objective, "coefficients")
        outs = net.stages(x, t, cond) if staged else [net(x, t, cond)]
    out, var = model.prediction.split(outs[-1])
    assert out.shape == x.shape
    assert var is None or var.shape == x.shape
    if staged and recipe.objective.coefficients:
        assert len(outs) == len(recipe.objective.coefficients)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_network_has_the_published_size(name: str) -> None:
    assert round(size(name) / 1e6) == PUBLISHED[name]


def test_latents_of_imagenet_serve_every_recipe_on_them() -> None:
    encoding = load(Encoding, FILES["imagenet/encode.yaml"])
    trained = [load(Recipe, FILES[name]) for name in IMAGENET]
    on_latents = [recipe for recipe in trained if hasattr(recipe.data, "folder")]
    assert len(on_latents) > 1
    for recipe in on_latents:
        assert recipe.model.tokenizer == encoding.tokenizer
        assert recipe.data == on_latents[0].data
        assert recipe.model.backbone.shape == (4, 32, 32)
        assert recipe.model.backbone.num_classes == 1000


def test_the_backbones_on_the_digits_share_a_recipe_and_a_size() -> None:
    plain = [read_yaml(FILES[name]) for name in DIGITS]
    assert len(plain) == 7
    for recipe in plain:
        del recipe["model"]["backbone"]
        for own in ("name", "coefficients"):  # DiMR and LEGO have a loss at every stage
            recipe["objective"].pop(own, None)
        assert recipe == plain[0]
    for name in DIGITS:
        assert 0.75e6 < size(name) < 1.25e6


@pytest.mark.parametrize("name", PYRAMIDS)
def test_the_parts_of_a_next_scale_generator_fit(name: str) -> None:
    recipe = load(Recipe, FILES[name])
    backbone, net = recipe.model.backbone, network(recipe)
    lengths = [p * p for p in backbone.scales]
    recipe.objective.scales(len(lengths))
    recipe.model.sampler.decoding.check(len(lengths))
    recipe.optim.build(net)
    del net.blocks[1:]  # they are all alike
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = net.to_empty(device="cpu")
        inputs = torch.empty(2, sum(lengths[1:]), backbone.code_width)
        logits = net(inputs, condition(recipe.model))
    assert logits.shape == (2, sum(lengths), backbone.codes)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_next_scale_generator_is_for_its_tokenizer(name: str) -> None:
    model = load(Recipe, FILES[name]).model
    if name.startswith("imagenet/"):
        quantizer = MultiScaleConfig()  # the released one
        if "512" in model.tokenizer.path:
            quantizer = replace(quantizer, scales=model.backbone.scales)
    else:
        task = name.split("/")[0]
        assert model.tokenizer.path == f"runs/{task}_vq"
        quantizer = load(Recipe, FILES[f"{task}/vq.yaml"]).model.tokenizer.quantizer
    for ours, theirs in (("scales", "scales"), ("codes", "codes"), ("code_width", "width")):
        assert getattr(model.backbone, ours) == getattr(quantizer, theirs)


@pytest.mark.parametrize("name", VAR)
def test_var_is_trained_as_published(name: str) -> None:
    recipe, images = load(Recipe, FILES[f"imagenet/{name}.yaml"]), 1_281_167
    epochs, batch, lr, last, last_decay = VAR[name]
    assert recipe.batch == batch
    assert recipe.steps == round(epochs * images / batch)
    optim = recipe.optim
    assert optim.lr == pytest.approx(lr * batch / 256)
    assert optim.warmup == round(recipe.steps / 50)
    assert (optim.schedule, optim.hold, optim.last, optim.clip) == ("linear", 0.05, last, 2.0)
    assert (optim.weight_decay, optim.last_weight_decay) == (0.05, last_decay)
    backbone = recipe.model.backbone
    assert backbone.drop_path == pytest.approx(0.1 * backbone.depth / 24)


FINE_TUNED = {  # its recipe: of which weights, taught by whom
    "digits/code/drafter.yaml": ("digits/var.yaml", None),
    "digits/code/refiner.yaml": ("digits/var_small.yaml", "digits/var.yaml"),
    "imagenet/code_drafter.yaml": ("imagenet/var_d30.yaml", None),
    "imagenet/code_refiner.yaml": ("imagenet/var_d16.yaml", "imagenet/var_d30.yaml"),
}


@pytest.mark.parametrize("name", FINE_TUNED)
def test_collaborators_start_from_what_their_recipes_leave(name: str) -> None:
    recipe, (origin, teacher) = load(Recipe, FILES[name]), FINE_TUNED[name]

    def run(name: str) -> str:  # as train_scripts/train.py names it
        return f"runs/{Path(name).parent.name}_{Path(name).stem}"

    assert recipe.init == run(origin)
    assert recipe.model == load(Recipe, FILES[origin]).model
    if teacher:
        assert recipe.objective.teacher == run(teacher)
        assert recipe.model.tokenizer == load(Recipe, FILES[teacher]).model.tokenizer
        assert recipe.objective.scales.fade == recipe.steps
        drafter = load(Recipe, FILES[name.replace("refiner", "drafter")])
        assert drafter.objective.scales.count == recipe.objective.scales.skip


RECOVERED = {  # of which recipe's network, taught by itself or by the data
    "digits/qat_dit.yaml": ("digits/dit.yaml", "distil_denoiser"),
    "digits/qat_var.yaml": ("digits/var.yaml", None),
    "digits/topkld_var.yaml": ("digits/var.yaml", "distil_scales"),
}


def test_every_recipe_through_quantization_is_looked_at() -> None:
    assert sorted(RECOVERED) == CHANGED


@pytest.mark.parametrize("name", RECOVERED)
def test_what_is_trained_through_quantization_is_a_network_of_ours(name: str) -> None:
    recipe, (origin, taught) = load(Recipe, FILES[name]), RECOVERED[name]
    run = f"runs/digits_{Path(origin).stem}"
    assert recipe.init == run
    assert replace(recipe.model, changes=()) == load(Recipe, FILES[origin]).model
    objective = recipe.objective
    if hasattr(objective, "steps"):  # damped
        assert objective.steps == recipe.steps
        objective = objective.objective
    assert getattr(objective, "teacher", None) == (run if taught else None)
    net = recipe.model.backbone.build()
    (change,) = recipe.model.changes
    aware = aware_layers(change.apply(net))
    linears = [n for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert sorted(aware) == sorted(linears)
    recipe.optim.build(change.apply(net))
    if hasattr(objective, "features"):
        assert any(re.fullmatch(objective.features, n) for n, _ in net.named_modules())
    if hasattr(objective, "divergence"):
        assert objective.divergence.k < recipe.model.backbone.codes


@pytest.mark.parametrize("task", ["digits", "shapes"])
def test_the_next_scale_models_of_a_task_share_a_recipe(task: str) -> None:
    names = (f"{task}/var.yaml", f"{task}/mvar.yaml", f"{task}/var_small.yaml")
    plain = [read_yaml(FILES[name]) for name in names]
    for recipe in plain:
        del recipe["model"]["backbone"]
        assert recipe == plain[0]
    var, mvar, small = map(size, names)
    assert abs(mvar / var - 1) < 0.03
    assert 0.9e6 < var < 1.1e6
    assert 0.2 < small / var < 0.3


def test_tokens_of_the_digits_are_of_their_tokenizer() -> None:
    assert load(Encoding, FILES["digits/var_encode.yaml"]).tokenizer == (
        load(Recipe, FILES["digits/var.yaml"]).model.tokenizer
    )

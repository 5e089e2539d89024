"""Every recipe that ships: it loads, its parts fit, its network has the right shape and size. No
weights, no pictures, no downloads: networks are built on the meta device, tokenizers not at all.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from genvis.config import load, read_yaml
from genvis.training.encoding import Encoding
from genvis.training.recipe import Recipe
from genvis.types import Cond

CONFIGS = Path("configs")
FILES = {str(path.relative_to(CONFIGS)): path for path in sorted(CONFIGS.rglob("*.yaml"))}
RECIPES = [name for name, path in FILES.items() if {"model", "steps"} <= read_yaml(path).keys()]
GENERATORS = [name for name in RECIPES if read_yaml(FILES[name])["model"]["name"] == "generator"]
IMAGENET = [name for name in GENERATORS if name.startswith("imagenet/")]
DIGITS = [name for name in GENERATORS if name.startswith("digits/backbones/")]
PUBLISHED = {  # millions of parameters
    "imagenet/dit_xl_2.yaml": 675,
    "imagenet/sit_xl_2.yaml": 675,
    "imagenet/uvit_l_2.yaml": 287,
    "imagenet/uvit_h_2.yaml": 501,
    "imagenet/dimr_xl_2r.yaml": 505,
    "imagenet/unet_adm_256.yaml": 554,
}


def network(recipe: Recipe) -> nn.Module:
    with torch.device("meta"):
        return recipe.model.backbone.build()


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
        cond = Cond(label=torch.empty(2, dtype=torch.int64))
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

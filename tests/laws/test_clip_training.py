"""A CLIP trained here: its words, its contrast, its folder, which transformers reads too."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genvis.config import build
from genvis.features.clip import CLIP, images_and_words
from genvis.features.clip_tokens import END, START, CLIPTokenizer
from genvis.models import MODELS
from genvis.objectives.contrastive import Contrastive
from genvis.random import HashKeys
from genvis.training.fit import fit
from genvis.training.recipe import Recipe
from genvis.types import Batch, Cond

INSTALLED = importlib.util.find_spec("transformers") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="needs the optional package transformers")
WORDS = ("a", "an", "and", "red", "green", "orange", "star", "stars", "ring", "background", "on")
TOWER = {"width": 16, "depth": 1, "heads": 2, "hidden": 16}
MODEL = {"name": "clip", "words": list(WORDS), "text": TOWER, "image": TOWER}
MODEL |= {"size": 16, "patch": 8, "context": 80, "shared": 8}


def test_each_known_word_is_one_token(tmp_path: Path) -> None:
    tokenizer = CLIPTokenizer.of_words(WORDS)
    names = {number: token for token, number in tokenizer.ids.items()}
    for word in WORDS:
        assert [names[i] for i in tokenizer.encode(word)] == [START, f"{word}</w>", END]
    assert len(tokenizer.encode("a red star on an orange background")) == 9
    assert sorted(tokenizer.ids.values()) == list(range(len(tokenizer.ids)))
    assert len(tokenizer.encode("redder é")) > 4  # spelled in what is there, nothing is lost
    tokenizer.save(tmp_path)
    read = CLIPTokenizer.from_folder(tmp_path)
    assert (read.ids, read.ranks) == (tokenizer.ids, tokenizer.ranks)
    for wrong in ("two words", "x1", "Red", ""):
        with pytest.raises(ValueError, match="not one word in lower case"):
            CLIPTokenizer.of_words([wrong])


@needed
def test_transformers_reads_the_words_alike(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer as Theirs

    ours = CLIPTokenizer.of_words(WORDS)
    ours.save(tmp_path)
    theirs = Theirs.from_pretrained(tmp_path)
    for text in ("a red star", "an orange ring and stars", "redder, é 42!", "BACKGROUND", ""):
        assert theirs(text).input_ids == ours.encode(text), text


class Table(nn.Module):
    """Logits that are its weights."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(logits)


class Weights:
    def logits(self, net: Any, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return net.weight


def test_contrast_is_symmetric_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [3.0, 0.0, 1.0]])
    loss = Contrastive().build(Weights())
    batch = Batch(torch.zeros(3, 3, 4, 4), Cond(prompts=("a", "b", "c")))
    found = loss(Table(logits), batch, HashKeys.of(0, range(3)))
    rows, columns = logits.log_softmax(1).diagonal(), logits.log_softmax(0).diagonal()
    torch.testing.assert_close(found.per_sample, -(rows + columns) / 2)
    assert found.logs["top1"].tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="needs images with captions"):
        loss(Table(logits), Batch(batch.x, Cond()), HashKeys.of(0, range(3)))
    with pytest.raises(ValueError, match="shift and noise must be at least 0"):
        Contrastive(noise=-1.0)


@needed
def test_a_trained_folder_is_transformers_own(tmp_path: Path) -> None:
    """Six steps move every weight, the temperature too; both readers of the folder agree."""
    from transformers import CLIPModel

    recipe = {
        "model": MODEL,
        "data": {"name": "shapes", "size": 16, "count": 32, "held_out": 8},
        "objective": {"name": "contrastive", "shift": 1.0, "noise": 0.1},
        "optim": {"lr": 1e-2},
        "steps": 6,
        "batch": 8,
        "ema": 0.0,
    }
    fresh = MODELS.build(MODEL).build()
    trained = fit(build(Recipe, recipe), tmp_path / "run")
    assert trained.net.logit_scale != fresh.net.logit_scale
    folder = tmp_path / "run" / "model"
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "vocab.json", "merges.txt"}
    ours, theirs = CLIP.from_folder(folder), CLIPModel.from_pretrained(folder).eval()
    images = HashKeys.of(1, range(3)).uniform((3, 16, 16)).float() * 2 - 1
    prompts = ["a red star", "an orange ring on a red background", "a z"]
    ids = ours.tokenizer(prompts) if ours.tokenizer else torch.empty(0)
    x = ours.prepare.floating(images)
    with torch.no_grad():
        seen = theirs(input_ids=ids, pixel_values=x)
    torch.testing.assert_close(ours.images(images), seen.image_embeds, atol=1e-5, rtol=1e-4)
    words = torch.stack([ours.text(prompt) for prompt in prompts])
    torch.testing.assert_close(words, seen.text_embeds, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        logits = trained.logits(trained.net.eval(), images, prompts)
    torch.testing.assert_close(logits, seen.logits_per_image, atol=1e-4, rtol=1e-4)
    trained.save_pretrained(folder)  # replaces its own kind
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt"):
        trained.save_pretrained(folder)


@needed
def test_texts_that_do_not_fit_are_refused() -> None:
    model = MODELS.build(MODEL).build()
    with pytest.raises(ValueError, match="has 82 tokens, more than the 80"):
        model.logits(model.net, torch.zeros(1, 3, 16, 16), ["a " * 80])


def test_a_name_that_is_not_shipped_is_named() -> None:
    with pytest.raises(ValueError, match=r"shapes-clip-v0: no config\.json there"):
        images_and_words("shapes-clip-v0")

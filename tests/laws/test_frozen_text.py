"""Frozen encoders of transformers, at tiny sizes made here, and their texts kept in shards."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genvis.checkpoint import load_tensors, save_tensors
from genvis.config import build
from genvis.data.embedded import Embedded, EmbeddedConfig, shard_path
from genvis.data.shapes import ShapesConfig
from genvis.features.clip import CLIP
from genvis.integrations.transformers_text import CLIPText, T5Text
from genvis.random import HashKeys
from genvis.samplers.generator import Generator, GeneratorConfig
from genvis.text import TEXTS
from genvis.text.words import WordsConfig
from genvis.training.embedding import Embedding, embed
from genvis.types import Cond
from tests.laws.tiny_clip import CONTEXT, write_clip

pytest.importorskip("transformers")

PIECES = ("\u2581", *"abcdefghijklmnopqrstuvwxyz", "\u2581a", "\u2581dog", "\u2581cat")


def write_t5(folder: Path) -> Path:
    """A random T5 encoder and its tokenizer."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(piece, -1.0 - len(PIECES) / 50 + i / 50) for i, piece in enumerate(PIECES)]
    words: Any = T5Tokenizer(vocab=vocab, extra_ids=0)
    words.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"d_model": 12, "d_kv": 6, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def write_official_clip(folder: Path) -> Path:
    """As published: the config says what it is of."""
    write_clip(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", **config}))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIPText:
    folder = write_official_clip(tmp_path_factory.mktemp("clip"))
    return CLIPText(path=str(folder), width=16, length=CONTEXT)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> T5Text:
    return T5Text(path=str(write_t5(tmp_path_factory.mktemp("t5"))), width=12, length=10)


@pytest.fixture(params=["clip", "t5"])
def config(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def text(cond: Cond) -> torch.Tensor:
    assert cond.text is not None
    return cond.text


def mask(cond: Cond) -> torch.Tensor:
    assert cond.text_mask is not None
    return cond.text_mask


def test_texts_have_a_fixed_shape_and_depend_on_no_neighbour(config: Any) -> None:
    encoder = config.build()
    few, many = encoder(["a cat"]), encoder(["a cat", "a dog dog dog", ""])
    assert text(many).shape == (3, config.length, config.width)
    assert text(many).dtype == torch.float32
    torch.testing.assert_close(text(few), text(many)[:1], atol=1e-5, rtol=1e-4)
    counts = mask(many).sum(1).tolist()
    assert counts[0] < counts[1]
    assert counts[2] == (2 if isinstance(config, CLIPText) else 1)  # both ends, or the one there is
    assert not torch.allclose(text(many)[0], text(many)[1])


def test_padding_changes_nothing(config: Any) -> None:
    short = replace(config, length=config.length - 3).build()(["a cat"])
    long = config.build()(["a cat"])
    n = int(mask(long).sum())
    torch.testing.assert_close(text(short)[:, :n], text(long)[:, :n], atol=1e-5, rtol=1e-4)
    assert mask(short).sum() == n


def test_constant_tokens_are_constant_and_the_next_is_not(config: Any) -> None:
    """For CLIP the first, by causality; for T5 none."""
    encoder = config.build()
    texts = text(encoder(["a cat", "dog", "", "dog a cat"]))
    k = encoder.constant_tokens
    assert k == (1 if isinstance(config, CLIPText) else 0)
    spread = (texts - texts[:1]).abs().amax((0, 2))
    assert (spread[:k] < 1e-6).all()
    assert spread[k] > 1e-3


def test_clip_is_the_clip_that_is_implemented_here(clip: CLIPText) -> None:
    """Its pooled text, from the same files."""
    ours = CLIP.from_folder(clip.path)
    assert ours.tokenizer is not None
    found = clip.build()(["a cat"])
    assert found.pooled is not None
    with torch.no_grad():
        expected = ours.net.texts(ours.tokenizer(["a cat"], CONTEXT))
        projected = ours.net.text_projection(found.pooled)
    torch.testing.assert_close(projected, expected, atol=1e-5, rtol=1e-4)


def test_long_prompts_are_refused_with_what_would_be_lost(config: Any) -> None:
    encoder, prompt = config.build(), " ".join(["a"] * 30 + ["cat"])
    with pytest.raises(ValueError, match=rf"and {config.length} fit: without '.*cat"):
        encoder([prompt])
    with pytest.raises(ValueError, match="fit: without"):
        encoder.check(["a cat", prompt])


def test_or_cut_with_a_note(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    encoder, prompt = replace(config, unfit="note").build(), " ".join(["cat"] * 40)
    found = encoder([prompt])
    assert mask(found).all()
    assert "and " + str(config.length) + " fit: without" in capsys.readouterr().err


def test_what_has_no_token_is_named(t5: T5Text, clip: CLIPText) -> None:
    with pytest.raises(ValueError, match=r"has characters that .* has no token for"):
        t5.build()(["a \N{SNOWMAN}"])
    clip.build().check(["a \N{SNOWMAN}"])  # CLIP spells everything in bytes


def test_marks_of_the_tokenizer_are_no_words(clip: CLIPText, t5: T5Text) -> None:
    """After one of them a text would be read no further."""
    for config, mark in ((clip, "<|endoftext|>"), (t5, "</s>")):
        with pytest.raises(ValueError, match=f"or its own mark '{re.escape(mark)}'"):
            config.build().check([f"a cat {mark} dog"])  # type: ignore[attr-defined]


def test_identity_tells_weights_and_questions_apart(clip: CLIPText, tmp_path: Path) -> None:
    encoder = clip.build()
    write_official_clip(tmp_path)
    assert replace(clip, path=str(tmp_path)).build().identity == encoder.identity
    assert replace(clip, length=12).build().identity != encoder.identity
    assert not hasattr(WordsConfig().build(), "identity")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": "no such place"}, "no such folder, and not a hub id"),
        ({"width": 99}, "has features of width 16, text.width says 99"),
    ],
)
def test_a_wrong_folder_or_width_is_said(clip: CLIPText, given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(clip, **given).build()(["a cat"])


def test_weights_that_lack_some_are_refused(clip: CLIPText, tmp_path: Path) -> None:
    file = write_official_clip(tmp_path) / "model.safetensors"
    kept = {k: v for k, v in load_tensors(file).items() if k != "text_model.final_layer_norm.bias"}
    save_tensors(file, kept)
    with pytest.raises(ValueError, match=r"not the weights of a CLIPTextModel: .*norm\.bias is"):
        replace(clip, path=str(tmp_path)).build()(["a cat"])


# in a generator


def generator(config: Any) -> Generator:
    plain = {
        "backbone": {
            **{"name": "uvit", "size": 8, "channels": 3, "width": 16, "depth": 2, "heads": 2},
            **{"num_classes": 0, "text_width": config.width, "text_tokens": config.length},
        },
        "process": {"name": "linear"},
        "prediction": {"name": "velocity"},
        "tokenizer": {"name": "pixels"},
        "text": TEXTS.dump(config),
        "sampler": {"steps": 2},
    }
    made: Generator = build(GeneratorConfig, plain).build()
    return made


def test_a_frozen_encoder_is_neither_trained_nor_saved(config: Any, tmp_path: Path) -> None:
    made = generator(config)
    assert {name.split(".")[0] for name in made.net.state_dict()} == {"net"}
    made.save_pretrained(tmp_path / "model")
    again = Generator.from_pretrained(tmp_path / "model")
    assert again.config.text == config
    x, t, cond = torch.zeros(2, 3, 8, 8), torch.ones(2), Cond(prompts=("a cat", ""))
    assert torch.equal(again.net(x, t, cond), made.net.eval()(x, t, cond))


# kept in shards


@pytest.fixture
def embedding(tmp_path: Path) -> Embedding:
    folder = tmp_path / "clip"
    folder.mkdir()
    text = CLIPText(path=str(write_official_clip(folder)), width=16, length=CONTEXT, unfit="note")
    data = ShapesConfig(size=16, count=12, held_out=3)
    return Embedding(data=data, text=text, dtype="float32", shard=5, batch=4)


def test_kept_texts_are_the_encoder_s(embedding: Embedding, tmp_path: Path) -> None:
    folder = embed(embedding, tmp_path / "texts")
    data = EmbeddedConfig(data=embedding.data, folder=str(folder)).build("train")
    batch = data[[3, 1]]
    plain = embedding.data.build("train")[[3, 1]]
    assert torch.equal(batch.x, plain.x)
    assert batch.cond.prompts == plain.cond.prompts
    encoder = embedding.text.build()
    expected, null = encoder(plain.cond.prompts or ()), encoder([""])
    torch.testing.assert_close(text(batch.cond), text(expected), atol=1e-5, rtol=1e-4)
    assert torch.equal(mask(batch.cond), mask(expected))
    assert batch.cond.negative is not None
    torch.testing.assert_close(text(batch.cond.negative)[1:], text(null), atol=1e-5, rtol=1e-4)
    again = data.augmented([3, 1], HashKeys.of(0, [0, 1]))
    assert torch.equal(text(again.cond), text(batch.cond))


def test_training_on_kept_texts_is_training_on_captions(
    embedding: Embedding, tmp_path: Path
) -> None:
    """Also where rows are dropped, and then without the encoder at hand."""
    folder = embed(embedding, tmp_path / "texts")
    made = generator(embedding.text)
    rows = [0, 1, 2]
    batch = EmbeddedConfig(data=embedding.data, folder=str(folder)).build("train")[rows]
    x, t = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.rand(3)
    drop = torch.tensor([False, True, False])
    plain = Cond(prompts=batch.cond.prompts, drop=drop)
    expected = made.net(x, t, plain)
    torch.testing.assert_close(made.net(x, t, replace(batch.cond, drop=drop)), expected)


def test_an_interrupted_embedding_goes_on(embedding: Embedding, tmp_path: Path) -> None:
    folder = embed(embedding, tmp_path / "texts")
    whole = {path.name: path.read_bytes() for path in folder.glob("texts-*")}
    assert len(whole) > 2
    (folder / "manifest.json").unlink()
    shard_path(folder, 1).unlink()
    with pytest.raises(ValueError, match="encoding is not finished"):
        EmbeddedConfig(data=embedding.data, folder=str(folder)).build("train")
    kept = shard_path(folder, 0).stat().st_mtime_ns
    embed(embedding, folder)
    assert {path.name: path.read_bytes() for path in folder.glob("texts-*")} == whole
    assert shard_path(folder, 0).stat().st_mtime_ns == kept


def test_texts_of_other_data_or_encoders_are_refused(embedding: Embedding, tmp_path: Path) -> None:
    folder = embed(embedding, tmp_path / "texts")
    with pytest.raises(ValueError, match="another config"):
        embed(replace(embedding, shard=4), folder)
    more = replace(embedding.data, seed=9, count=200)  # type: ignore[type-var]
    data: Embedded = EmbeddedConfig(data=more, folder=str(folder)).build("train")
    with pytest.raises(ValueError, match="was not encoded"):
        data[list(range(200))]
    with pytest.raises(ValueError, match="was not encoded"):  # and before any work
        data.check(generator(embedding.text))
    data = EmbeddedConfig(data=embedding.data, folder=str(folder)).build("train")
    data.check(generator(embedding.text))
    with pytest.raises(ValueError, match="texts of another encoder"):
        data.check(generator(replace(embedding.text, length=19)))  # type: ignore[type-var]
    with pytest.raises(ValueError, match="whose text encoder is frozen"):
        data.check(generator(WordsConfig(width=16, depth=1, heads=2)))
    with pytest.raises(ValueError, match="no texts to keep"):
        embed(replace(embedding, text=WordsConfig()), tmp_path / "words")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["origin"]["captions"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="of other captions"):
        EmbeddedConfig(data=embedding.data, folder=str(folder)).build("train")

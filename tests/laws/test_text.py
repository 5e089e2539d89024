"""Prompts become conditions: nothing is lost in silence, padding and neighbours do not matter, and
a network that is told in words is trained, saved, changed and sampled as any other.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones.uvit import UViTConfig
from genvis.backbones.var import VARConfig
from genvis.config import ConfigError, build, dump
from genvis.console import prompt_lines
from genvis.data.scenes import SPLITS, scene
from genvis.data.specs import benchmark
from genvis.processes.guidance import Guided
from genvis.quant.plan import Plan
from genvis.random import HashKeys
from genvis.samplers.folder import Sampling, read_prompts, sample_folder
from genvis.samplers.generate import generate, in_turn
from genvis.samplers.generator import Generator, GeneratorConfig, Guidance, SamplerConfig
from genvis.text.prompted import ROWS, PromptedMaps, PromptedScales, in_passes
from genvis.text.vocabulary import SHAPES, Vocabulary
from genvis.text.words import Words, WordsConfig
from genvis.training.fit import fit
from genvis.training.recipe import Recipe
from genvis.types import Cond, take

TEXT = WordsConfig(width=16, depth=1, heads=2)
PROMPTS = ("a red heart", "three rings on a black background", "")
NET = {"name": "uvit", "size": 8, "channels": 3, "width": 16, "depth": 2, "heads": 2}
CONFIG = build(
    GeneratorConfig,
    {
        "backbone": {**NET, "num_classes": 0, "text_width": 16, "text_tokens": 16},
        "process": {"name": "linear"},
        "prediction": {"name": "velocity"},
        "tokenizer": {"name": "pixels"},
        "text": {"name": "words", "width": 16, "depth": 1, "heads": 2},
        "sampler": {"steps": 2},
    },
)


@pytest.fixture(scope="module")
def encoder() -> Words:
    return _wild(TEXT.build())


@pytest.fixture(scope="module")
def generator() -> Generator:
    found = CONFIG.build()
    _wild(found.net)
    return found


def _wild(net: nn.Module) -> nn.Module:
    """Weights that let every input matter."""
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.3 * noise
    return net.eval().requires_grad_(False)


# words


def test_the_words_of_shapes_have_their_published_numbers() -> None:
    vocabulary = Vocabulary(SHAPES, 16)
    row = vocabulary(["a small pink star to the left of five crosses"])[0].tolist()
    assert row == [1, 5, 21, 30, 40, 9, 8, 14, 10, 20, 46, 2, 0, 0, 0, 0]
    known = {"background": 16, "small": 21, "red": 23, "black": 31, "circle": 34, "hearts": 49}
    assert {word: vocabulary.numbers[word] for word in known} == known
    assert vocabulary([""])[0].tolist() == [1, 4, 2] + [0] * 13  # <bos> <null> <eos>


def test_every_caption_of_shapes_is_said_whole() -> None:
    vocabulary = Vocabulary(SHAPES, 16)
    captions = [scene(0, split, i).caption for split in SPLITS for i in range(300)]
    for caption in (*captions, *benchmark()):
        assert vocabulary.problem(caption) is None
        assert vocabulary.text(vocabulary([caption])[0]) == caption


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (" ".join(["red"] * 15), r"has 15 words, and 14 fit: without 'red'"),
        ("a teal circel", r"never saw: 'teal', 'circel'"),
        ("a red, heart", r"never saw: 'red,'; did you mean 'red'"),
        ("ein roter Kreis", "'ein', 'roter', 'kreis'"),
        ("红色 heart", "'红色'"),
        ("a <null> heart", "'<null>'"),
        ("a \N{HEAVY BLACK HEART}", "'\N{HEAVY BLACK HEART}'"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(encoder: Words, prompt: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encoder([prompt])


def test_what_does_not_fit_is_noted_where_that_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = replace(TEXT, unfit="note").build()
    found = encoder(["a turquoise heart", " ".join(["red"] * 20)])
    assert found.text is not None
    assert found.text.shape == (2, 16, 16)
    said = capsys.readouterr().err
    assert "'turquoise'" in said
    assert "without 'red red red red red red'" in said
    encoder(["a turquoise heart"])
    assert "turquoise" not in capsys.readouterr().err  # once


def test_case_blanks_and_unicode_forms_do_not_matter(encoder: Words) -> None:
    vocabulary = Vocabulary(("é", "red"), 6)
    assert torch.equal(vocabulary(["  RED\t e\N{COMBINING ACUTE ACCENT} "]), vocabulary(["red é"]))
    assert vocabulary([" \n"])[0].tolist() == vocabulary([""])[0].tolist()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"width": 10, "heads": 4}, "divisible by heads"),
        ({"slots": 40}, "slots must be at least 5 \\+ 45"),
        ({"words": ("Red",)}, r"got \['Red'\]"),
        ({"words": ("red", "red")}, "twice"),
        ({"length": 2}, "length"),
    ],
)
def test_encoders_that_cannot_be(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(TEXT, **given)  # type: ignore[arg-type]


# the encoder


def test_features_depend_on_no_neighbour_and_padding_is_zeros(encoder: Words) -> None:
    alone, beside = encoder(PROMPTS[:1]), encoder([*PROMPTS, "a blue star"])
    assert alone.text is not None
    assert beside.text is not None
    assert beside.text_mask is not None
    torch.testing.assert_close(alone.text, beside.text[:1])
    assert (beside.text[~beside.text_mask] == 0).all()
    assert beside.text_mask.sum(1).tolist() == [5, 8, 3, 5]


def test_longer_padding_changes_no_feature(encoder: Words) -> None:
    short = replace(TEXT, length=8).build()
    state = encoder.state_dict()
    short.load_state_dict({**state, "positions": state["positions"][:8]})
    text, cut = encoder(["a red heart"]).text, short.eval()(["a red heart"]).text
    assert text is not None
    torch.testing.assert_close(text[:, :8], cut)


def test_an_untrained_encoder_tells_words_apart() -> None:
    """Else a generator has to wait for it: of small embeddings they would be alike to 0.93."""
    alike = []
    for seed in range(5):
        torch.manual_seed(seed)
        text = WordsConfig(width=64, depth=2, heads=4).build()(["a small red circle"]).text
        assert text is not None
        words = nn.functional.normalize(text[0, 1:5].detach(), dim=-1)  # without <bos> and <eos>
        alike.append((words @ words.T)[~torch.eye(4, dtype=torch.bool)].mean())
    assert torch.stack(alike).mean() < 0.5


def test_no_token_is_constant(encoder: Words) -> None:
    """As `constant_tokens` says: even <bos> knows the prompt."""
    assert encoder.constant_tokens == 0
    one, other = encoder(["a red heart"]).text, encoder(["a blue star"]).text
    assert one is not None
    assert other is not None
    assert (one[:, 0] - other[:, 0]).abs().max() > 1e-3


def test_prompts_in_passes_are_the_same_whatever_they_are_beside(encoder: Words) -> None:
    prompts = [f"a {color} heart" for color in ("red", "blue", "pink")] * ROWS
    many, few = in_passes(encoder, prompts), in_passes(encoder, prompts[:2])
    assert many.text is not None
    assert few.text is not None
    assert torch.equal(many.text[:2], few.text)
    assert many.prompts == tuple(prompts)


# in front of a backbone


def test_a_told_network_is_its_backbone_on_encoded_text(generator: Generator) -> None:
    net = generator.net
    assert isinstance(net, PromptedMaps)
    x, t = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.rand(3)
    found = net(x, t, Cond(prompts=PROMPTS))
    text = net.text(PROMPTS)
    null = net.text([""])
    drop = torch.tensor([False, False, True])
    expected = net.net(x, t, replace(text, drop=drop, negative=_rows(null, 3)))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(net(x, t, net.prepared(Cond(prompts=PROMPTS))), found)


def _rows(cond: Cond, n: int) -> Cond:
    return take(cond, torch.zeros(n, dtype=torch.int64))


def test_the_empty_prompt_is_a_dropped_row(generator: Generator) -> None:
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.rand(2)
    net = generator.net
    empty = net(x, t, Cond(prompts=("", " ")))
    torch.testing.assert_close(
        empty, net(x, t, Cond(prompts=("a red heart", "two rings")).dropped())
    )
    torch.testing.assert_close(empty, net(x, t, Cond(drop=torch.ones(2, dtype=torch.bool))))
    told = net(x, t, Cond(prompts=("a red heart", "two rings")))
    assert (told - empty).abs().amax((1, 2, 3)).min() > 1e-4


def test_negative_prompts_are_what_guidance_leaves(generator: Generator) -> None:
    denoise = generator.denoiser()
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor(0.5)
    hearts = Cond(prompts=("a red heart",) * 2)
    against = replace(hearts, negative=Cond(prompts=("a blue star",) * 2))
    given = denoise(x, t, hearts).x0
    for cond, other in ((against, Cond(prompts=("a blue star",) * 2)), (hearts, hearts.dropped())):
        found = Guided(denoise, 3.0)(x, t, cond).x0
        expected = given + 2 * (given - denoise(x, t, other).x0)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_encoder() -> None:
    generator = CONFIG.build()
    _wild(generator.net).requires_grad_(True)
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.rand(2)
    generator.net(x, t, Cond(prompts=PROMPTS[:2])).square().sum().backward()
    missing = [name for name, p in generator.net.named_parameters() if p.grad is None]
    assert missing == []
    assert generator.net.get_parameter("text.tokens.weight").grad.abs().sum() > 0  # type: ignore[union-attr]


def test_the_encoder_is_saved_with_the_generator(generator: Generator, tmp_path: Path) -> None:
    generator.save_pretrained(tmp_path / "model")
    again = Generator.from_pretrained(tmp_path / "model")
    assert any(name.startswith("text.") for name in again.net.state_dict())
    x, t, cond = torch.zeros(1, 3, 8, 8), torch.ones(1), Cond(prompts=("two rings",))
    assert torch.equal(again.net(x, t, cond), generator.net(x, t, cond))


def test_changes_are_to_the_backbone(generator: Generator) -> None:
    """The names that a plan matches are the backbone's, and the encoder keeps its weights."""
    rule = {"match": r"mid_block\..*", "weight": {"name": "int", "bits": 2}}
    changed = generator.changed(build(Plan, {"rules": [rule]}))
    x, t, cond = torch.zeros(1, 3, 8, 8), torch.ones(1), Cond(prompts=("two rings",))
    assert not torch.equal(changed.net(x, t, cond), generator.net(x, t, cond))
    assert changed.text is generator.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"width": 8}, "16 tokens of width 8, the backbone takes up to 16 tokens of width 16"),
        ({"length": 20}, "20 tokens of width 16"),
    ],
)
def test_encoder_and_backbone_must_fit(text: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(CONFIG, text=replace(TEXT, **text)).build()  # type: ignore[arg-type]


def test_a_backbone_without_text_takes_no_encoder() -> None:
    deaf = replace(CONFIG.backbone, text_width=0)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="the backbone takes no text"):
        replace(CONFIG, backbone=deaf).build()


def test_scales_are_told_too() -> None:
    """`forward`, `extend` and `prefill` of a next-scale network agree on prompts."""
    scales = (1, 2, 3)
    plain = build(
        VARConfig,
        {
            **{"scales": scales, "codes": 5, "code_width": 4, "width": 16, "depth": 1, "heads": 2},
            **{"num_classes": 0, "text": {"width": 16, "null_tokens": 2}},
        },
    )
    net = _wild(PromptedScales(TEXT.build(), plain.build()))
    cond, x = Cond(prompts=PROMPTS), torch.randn(3, 13, 4)
    logits = net(x, cond)
    first, memory = net.extend(None, 0, cond, None)
    second, _ = net.extend(x[:, :4], 1, cond, memory)
    torch.testing.assert_close(torch.cat([first, second], 1), logits[:, :5], atol=1e-4, rtol=1e-4)
    both, _ = net.prefill(x[:, :4], 2, cond)
    torch.testing.assert_close(both, logits[:, :5], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits, net(x, Cond(prompts=("a star",) * 3)))


# sampling


def test_samples_of_prompts(generator: Generator, tmp_path: Path) -> None:
    sampling = Sampling(sampler=SamplerConfig(steps=2), count=5, prompts=PROMPTS[:2], chunk=2)
    images, labels = sample_folder(generator, sampling, tmp_path / "out", "w")
    assert labels is None
    assert read_prompts(tmp_path / "out") == (*PROMPTS[:2], *PROMPTS[:2], PROMPTS[0])
    again = replace(sampling, prompts=PROMPTS[1:2])
    other, _ = sample_folder(generator, again, tmp_path / "two", "w")
    assert torch.equal(images[1::2], other[1::2])  # the same words and keys
    assert not torch.equal(images[0], other[0])


def test_an_image_of_a_prompt_depends_on_no_other_prompt(generator: Generator) -> None:
    """To the last bit: texts are encoded once, by passes of a fixed size."""
    sampler, keys = generator.sampler(), HashKeys.of(0, range(2))
    few = generator.things(prompts=PROMPTS[:2])
    many = generator.things(prompts=[*PROMPTS[:2], *["a red star"] * 40])
    assert torch.equal(
        generate(sampler, in_turn(few, range(2)), keys),
        generate(sampler, in_turn(many, range(2)), keys),
    )


def test_negative_prompts_reach_the_sampler(generator: Generator) -> None:
    config = SamplerConfig(steps=2, guidance=Guidance(scale=3.0))
    sampler, keys = generator.sampler(config), HashKeys.of(0, range(1))

    def made(negative: str | None) -> Tensor:
        return generate(sampler, generator.things(prompts=["a red heart"], negative=negative), keys)

    assert torch.equal(made(None), made(""))
    assert not torch.equal(made(None), made("a blue star"))


def test_a_negative_prompt_without_guidance_is_refused(generator: Generator) -> None:
    """It would change nothing."""

    def things(sampler: SamplerConfig) -> Cond:
        given = {"sampler": sampler, "prompts": PROMPTS[:1], "negative": "a star"}
        return Sampling(**given).things(generator)  # type: ignore[arg-type]

    guided = SamplerConfig(guidance=Guidance(scale=2.0))
    weakly = SamplerConfig(guidance=Guidance(scale=2.0, weak="another"))
    for sampler in (SamplerConfig(), weakly):
        with pytest.raises(ValueError, match=r"negative 'a star' needs guidance by the prompt"):
            things(sampler)
    assert things(guided).negative is not None


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"\xef\xbb\xbfa heart\r\n \r\na star\r\n", ("a heart", "a star")),  # as Windows writes it
        (b"a heart\n\n\t\na star", ("a heart", "a star")),
        ("a heart\u2028and\x85a star\nein Kreis, größer".encode(), (
            "a heart\u2028and\x85a star", "ein Kreis, größer"
        )),
    ],
)  # fmt: skip
def test_a_file_of_prompts_has_one_a_line(
    content: bytes, lines: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    assert prompt_lines(str(tmp_path / "prompts.txt")) == lines


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf", b"\xff\xfea\x00"])
def test_a_file_without_prompts_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"prompts\.txt: (empty|not a text file in UTF-8)"):
        prompt_lines(str(tmp_path / "prompts.txt"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompts": []}, "prompts must name at least one"),
        ({"prompts": ["a teal heart"]}, "'teal'"),
        ({"negative": "a star"}, "negative prompt needs prompts"),
        ({"prompts": ["a star"], "classes": [1]}, "classes or prompts"),
        ({"classes": [1]}, "this model has no classes"),
        ({"prompts": ["a star"], "negative": "stars everywhere"}, "'everywhere'"),
    ],
)
def test_what_a_model_is_not_told(
    generator: Generator, given: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        generator.things(**given)  # type: ignore[arg-type]


def test_models_without_text_take_no_prompts() -> None:
    plain = replace(CONFIG, text=None, backbone=UViTConfig(
        size=8, channels=3, width=16, depth=2, heads=2, num_classes=4
    )).build()  # fmt: skip
    with pytest.raises(ValueError, match="prompts were given, but this model takes 4 classes"):
        plain.things(prompts=["a star"])


def test_generators_with_encoders_of_their_own_do_not_guide_each_other(
    generator: Generator, tmp_path: Path
) -> None:
    generator.save_pretrained(tmp_path / "weak")
    guidance = Guidance(scale=2.0, weak=str(tmp_path / "weak"))
    with pytest.raises(ValueError, match="a text encoder of its own"):
        generator.denoiser(guidance)


def test_the_config_says_which_encoder() -> None:
    plain = dump(CONFIG)
    assert plain["text"]["name"] == "words"
    assert build(GeneratorConfig, plain) == CONFIG
    with pytest.raises(ConfigError, match=r"text\.name: 'word' is not one of words, clip, t5"):
        build(GeneratorConfig, {**plain, "text": {"name": "word"}})


# training


@pytest.mark.parametrize(
    ("words", "prompts", "said"),
    [
        ([word for word in SHAPES if word != "ring"], ["a heart"], "never saw: 'ring'"),
        (list(SHAPES), ["a teal heart"], "never saw: 'teal'"),
    ],
)
def test_captions_and_prompts_that_training_meets_late_are_refused_at_once(
    words: list[str], prompts: list[str], said: str, tmp_path: Path
) -> None:
    """The first example can be said; a later one, or a prompt of a callback, cannot."""
    plain = dump(CONFIG)
    recipe = {
        "model": {
            **{"name": "generator", **plain, "text": {**plain["text"], "words": words}},
            "backbone": {**plain["backbone"], "size": 16},
        },
        "data": {"name": "shapes", "size": 16, "count": 60, "held_out": 4},
        "objective": {"name": "denoising"},
        **{"steps": 100_000, "batch": 4},
        "callbacks": [{"name": "samples", "every": 50_000, "prompts": prompts}],
    }
    with pytest.raises(ValueError, match=said):
        fit(build(Recipe, recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()

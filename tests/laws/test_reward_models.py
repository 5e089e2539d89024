"""Reward models that other packages run: through stand-ins of those packages, and, where
transformers is installed, through tiny models of its own.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from genvis.features.prepare import prepare
from genvis.images import from_uint8, to_uint8
from genvis.integrations.reward_packages import standardised
from genvis.types import Cond, take
from genvis.verifiers import VERIFIERS
from genvis.verifiers.aesthetic import AffineHead
from genvis.verifiers.scoring import require
from genvis.verifiers.token_reward import token_reward

INSTALLED = importlib.util.find_spec("transformers") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="needs the optional package transformers")
IMAGES = torch.rand(5, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
PROMPTS = ("a cat", "a red cat", "two dogs", "a cat", "a")
COND = Cond(prompts=PROMPTS)


class Encoded(SimpleNamespace):
    def to(self, device: Any) -> "Encoded":
        return self


class Words:
    """A tokenizer whose tokens are the lengths of words, after a first one."""

    def __call__(self, texts: Any, padding: Any = False, max_length: int = 0, **_: Any) -> Any:
        if isinstance(texts, str):
            return Encoded(input_ids=[1, *map(len, texts.split())])
        assert padding == "max_length"
        rows = [self(text).input_ids for text in texts]
        ids = torch.tensor([row + [0] * (max_length - len(row)) for row in rows])
        return Encoded(input_ids=ids, attention_mask=(ids > 0).long())


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 768, 16, 112)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 224, 224)
        return self.conv(x).flatten(2).mT  # (B, 4, 768)


class Fusion(nn.Module):
    """Words times what was seen, in the first position."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 768)
        self.register_buffer("position_ids", torch.arange(3))

    def forward(
        self,
        ids: Tensor,
        attention_mask: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        return_dict: bool,
    ) -> Any:
        assert return_dict
        assert torch.equal(encoder_attention_mask, torch.ones(len(ids), 4).long())
        words = (self.words(ids) * attention_mask[..., None]).sum(1, keepdim=True)
        seen = encoder_hidden_states.mean(1, keepdim=True)
        return SimpleNamespace(last_hidden_state=torch.cat([seen * words, seen], 1))


class Head(AffineHead):
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, 1), as theirs


class Reward(nn.Module):
    """A stand-in for the class of the package image-reward."""

    def __init__(self, med_config: str, device: str) -> None:
        super().__init__()
        assert json.loads(Path(med_config).read_text()) == {"size": 1}
        self.blip = nn.Module()
        self.blip.tokenizer = Words()
        self.blip.visual_encoder, self.blip.text_encoder = Patches(), Fusion()
        self.mlp = Head(768)


@pytest.fixture
def image_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = ModuleType("ImageReward.ImageReward")
    package.ImageReward = Reward  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ImageReward", ModuleType("ImageReward"))
    monkeypatch.setitem(sys.modules, "ImageReward.ImageReward", package)
    (tmp_path / "med_config.json").write_text('{"size": 1}')
    torch.manual_seed(0)
    torch.save(weights(tmp_path), tmp_path / "ImageReward.pt")
    return tmp_path


def weights(folder: Path) -> dict[str, Tensor]:
    """As newer checkpoints are: without the buffers that only count."""
    state = Reward(str(folder / "med_config.json"), "cpu").state_dict()
    return {name: value for name, value in state.items() if not name.endswith("position_ids")}


def test_image_reward_is_the_packages_formula(image_reward: Path) -> None:
    verifier = VERIFIERS.build({"name": "image_reward", "path": str(image_reward)}).build()
    scores = verifier(IMAGES, COND)
    state = torch.load(image_reward / "ImageReward.pt", weights_only=True)
    net = Reward(str(image_reward / "med_config.json"), "cpu").eval()
    net.load_state_dict(state, strict=False)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            seen = net.blip.visual_encoder(prepare(IMAGES[row : row + 1], 224)).mean(1)
            words = net.blip.text_encoder.words(torch.tensor(Words()(prompt).input_ids)).sum(0)
            expected = standardised(net.mlp(seen * words)[0, 0])
        torch.testing.assert_close(scores[row], expected, rtol=1e-4, atol=1e-4)
    images = IMAGES.clone().requires_grad_()
    verifier(images, COND).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_image_reward_is_strict(image_reward: Path) -> None:
    config = VERIFIERS.build({"name": "image_reward", "path": str(image_reward)})
    long = Cond(prompts=("a " * 35,))
    with pytest.raises(ValueError, match="has 36 tokens, more than the 35 that ImageReward reads"):
        require(config.build(), long)
    with pytest.raises(ValueError, match=r"needs cond\.prompts"):
        config.build()(IMAGES, Cond())
    state = weights(image_reward)
    del state["mlp.layers.0.bias"]
    torch.save(state, image_reward / "ImageReward.pt")
    with pytest.raises(ValueError, match=r"does not fit Reward: 1 missing \(mlp\.layers\.0\.bias"):
        config.build()


class Answers:
    """A stand-in for the package t2v-metrics: brightness by the length of the prompt."""

    def __init__(self, model: str, device: str, cache_dir: str) -> None:
        assert model == "clip-flant5-xl"
        self.model = self

    def forward(
        self, images: list[str], texts: list[str], question_template: str, answer_template: str
    ) -> Tensor:
        assert "{}" in question_template
        assert answer_template == "Yes"
        found = [torch.from_numpy(np.array(Image.open(path))).float().mean() for path in images]
        return torch.stack(found) / 255 / torch.tensor([len(text) for text in texts])


def test_vqa_score_gets_pictures_and_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ModuleType("t2v_metrics")
    package.VQAScore = Answers  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "t2v_metrics", package)
    config = {"name": "vqa_score", "path": str(tmp_path), "model": "clip-flant5-xl"}
    (tmp_path / "models--zhiqiulin--clip-flant5-xl").mkdir()
    with pytest.raises(ValueError, match="not there; get google/flan-t5-xl into this hub cache"):
        VERIFIERS.build(config).build()
    (tmp_path / "models--google--flan-t5-xl").mkdir()
    verifier = VERIFIERS.build(config).build()
    brightness = (from_uint8(to_uint8(IMAGES)) + 1).mean((1, 2, 3)) / 2
    expected = brightness / torch.tensor([len(prompt) for prompt in PROMPTS])
    torch.testing.assert_close(verifier(IMAGES, COND), expected)
    order = torch.tensor([3, 1])
    assert torch.equal(verifier(IMAGES[order], take(COND, order)), verifier(IMAGES, COND)[order])


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ImageReward", "ImageReward.ImageReward", "t2v_metrics"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    for file in ("ImageReward.pt", "med_config.json"):
        (tmp_path / file).touch()
    for hub in ("zhiqiulin--clip-flant5-xxl", "google--flan-t5-xxl"):
        (tmp_path / f"models--{hub}").mkdir()
    packages = {"image_reward": "image-reward", "vqa_score": "t2v-metrics"}
    for name, package in packages.items():
        with pytest.raises(ImportError, match=f"this verifier needs the package {package}: "):
            VERIFIERS.build({"name": name, "path": str(tmp_path)}).build()


@pytest.mark.skipif(INSTALLED, reason="transformers is installed")
def test_missing_transformers_is_named(tmp_path: Path) -> None:
    for name in ("image_classifier", "yes_probability"):
        with pytest.raises(ImportError, match="the package transformers"):
            VERIFIERS.build({"name": name, "path": str(tmp_path)}).build()


@needed
def test_a_transformers_classifier_gives_its_logits(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = Dinov2Config(**small, image_size=28, patch_size=14, num_labels=6)
    net = Dinov2ForImageClassification(sizes).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    net.save_pretrained(tmp_path)
    config = {"name": "image_classifier", "path": str(tmp_path), "size": 28}
    verifier = VERIFIERS.build({**config, "form": "logit"}).build()
    images = torch.rand(4, 3, 28, 28) * 2 - 1
    label = torch.tensor([0, 5, 2, 2])
    mean, std = (
        torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        logits = net(pixel_values=((images + 1) / 2 - mean) / std).logits
    found = verifier(images, Cond(label=label))
    torch.testing.assert_close(found, logits[torch.arange(4), label], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="knows labels 0 to 5, got 6 to 6"):
        verifier(images, Cond(label=label * 0 + 6))
    given = images.clone().requires_grad_()
    verifier(given, Cond(label=label)).sum().backward()
    assert given.grad is not None
    assert given.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of 4 image tokens and single words, as `save_pretrained` writes it."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("llava")
    words = [
        "[UNK]",
        "<image>",
        "</s>",
        "Yes",
        "No",
        "Does",
        "this",
        "figure",
        "show",
        "a",
        "cat",
        "red",
        "two",
        "dogs",
        "please",
        ":",
        "?",
    ]
    kind = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = Tokenizer(kind)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}: "
    )
    size = {"height": 16, "width": 16}
    pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    LlavaProcessor(
        pictures,
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    shared = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    torch.manual_seed(0)
    net = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                **shared, num_attention_heads=2, image_size=16, patch_size=8
            ),
            text_config=LlamaConfig(
                **shared, num_attention_heads=2, num_key_value_heads=2, vocab_size=len(words)
            ),
            image_token_index=1,
        )
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    net.save_pretrained(folder)
    return folder


@needed
def test_the_probability_of_yes(language_model: Path) -> None:
    """The four modes, of the logits before the answer, one image at a time."""
    question = "Does this figure show {} ?"
    config = {"name": "yes_probability", "path": str(language_model), "question": question}

    def scored(**fields: Any) -> Tensor:
        return VERIFIERS.build({**config, **fields}).build()(IMAGES, COND)

    odds, share = scored(mode="logodds"), scored(mode="yes_vs_no")
    torch.testing.assert_close(share.logit(), odds, rtol=1e-4, atol=1e-4)
    assert len(odds.unique()) == 5
    first = scored(mode="full_softmax")
    assert ((first > 0) & (first < share)).all()
    torch.testing.assert_close(scored(mode="answer_nll"), first, rtol=1e-4, atol=1e-6)
    ended = scored(mode="answer_nll", answer="Yes </s>")
    assert not torch.allclose(ended, first)
    verifier = VERIFIERS.build({**config, "mode": "logodds"}).build()
    tokens = verifier._read(verifier._asked("a red cat"), Image.new("RGB", (20, 24)))
    logits = verifier._logits(tokens)[:, -1:]
    assert token_reward(logits, "logodds", yes=[3], no=[4]).shape == (1,)
    with pytest.raises(ValueError, match="'No Yes' is 2 tokens for this model, must be 1"):
        VERIFIERS.build({**config, "mode": "logodds", "no": ["No Yes"]}).build()  # at once

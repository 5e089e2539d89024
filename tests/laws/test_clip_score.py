"""CLIPScore: one door for shipped networks, CLIP, open_clip and SigLIP; what is scored there."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_clip import open_clips
from tiny_clip import OFFICIAL, SIZE, tiny_net, write_clip, write_words
from torch import Tensor

from genvis.checkpoint import save_tensors
from genvis.evaluation.clip_score import PREFIX, CLIPScore
from genvis.features.clip import images_and_words
from genvis.types import Cond
from genvis.verifiers import VERIFIERS

INSTALLED = importlib.util.find_spec("transformers") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="needs the optional package transformers")
PROMPTS = ("cat", "a b c", "dog")


def pixels(n: int, height: int = 20, width: int = 33) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def scored(folder: Path, images: Tensor, prompts: tuple[str, ...], **config: Any) -> Tensor:
    scorer = CLIPScore(path=str(folder), **config).build()
    (values,) = scorer(images, Cond(prompts=prompts), range(len(prompts))).values()
    return values


def test_the_score_is_of_pairs_alone(tmp_path: Path) -> None:
    """Whatever else is in the batch; images that only fill it up are not scored."""
    folder, images = write_clip(tmp_path), pixels(4)
    whole = scored(folder, images, PROMPTS)
    assert whole.shape == (3,)
    alone = [scored(folder, images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-4, atol=1e-4)
    turned = scored(folder, images[[2, 0]], ("dog", "cat"))
    torch.testing.assert_close(turned, whole[[2, 0]], rtol=1e-4, atol=1e-4)
    assert whole.abs().max() <= 100


def test_captions_have_their_prefix_and_factor(tmp_path: Path) -> None:
    clip, folder, images = images_and_words(str(write_clip(tmp_path))), tmp_path, pixels(3)

    def cosine(*prompts: str) -> Tensor:
        words = torch.stack([clip.text(prompt) for prompt in prompts])
        return (clip.seen(clip.prepare(images)) * words).sum(1).double()

    short = ("a", "b", "c")
    told = cosine(*(PREFIX + prompt for prompt in short)).clamp(min=0)
    torch.testing.assert_close(
        scored(folder, images, short, captions=True), 2.5 * told, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        scored(folder, images, short), 100 * cosine(*short), atol=1e-4, rtol=0
    )
    with pytest.raises(ValueError, match="has 21 tokens, more than the 20 that this CLIP reads"):
        scored(folder, images, ("a b c d e f",) * 3, captions=True)


def test_the_metric_names_its_network(tmp_path: Path) -> None:
    folder = write_clip(tmp_path)
    scorer = CLIPScore(path=str(folder)).build()
    assert scorer.metric == f"CLIPScore[{tmp_path.name}:{scorer.clip.sha256[:6]}]"
    named = CLIPScore(path=str(folder), name="vit", captions=True).build()
    assert named.metric.startswith("CLIPScore-captions[vit:")
    with pytest.raises(ValueError, match="needs images with prompts"):
        scorer(pixels(2), Cond(), range(2))
    (folder / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"no vocab\.json and merges\.txt, which prompts need"):
        CLIPScore(path=str(folder)).build()


def test_folders_are_known_by_their_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json there; .* or one of open_clip_config"):
        images_and_words(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ValueError, match="holds a 'blip', expected one of clip, open_clip, siglip"):
        images_and_words(str(tmp_path))


def write_open_clip(folder: Path) -> dict[str, Any]:
    text, image = OFFICIAL["text_config"], OFFICIAL["vision_config"]
    given: dict[str, Any] = {
        "model_cfg": {
            "embed_dim": 12,
            "quick_gelu": True,
            "text_cfg": {
                "context_length": text["max_position_embeddings"],
                "vocab_size": text["vocab_size"],
                "width": 16,
                "heads": 2,
                "layers": 2,
                "mlp_ratio": 1.5,
            },
            "vision_cfg": {
                "image_size": SIZE,
                "patch_size": image["patch_size"],
                "width": 24,
                "head_width": 12,
                "layers": 2,
                "mlp_ratio": 32 / 24,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(given))
    save_tensors(folder / "open_clip_model.safetensors", open_clips(tiny_net()))
    write_words(folder)
    return given


def test_open_clips_folder_gives_the_same_network(tmp_path: Path) -> None:
    """With its own mean and deviation."""
    given = write_open_clip(tmp_path)
    clip = images_and_words(str(tmp_path))
    (tmp_path / "other").mkdir()
    same = images_and_words(str(write_clip(tmp_path / "other")))
    x = same.prepare(pixels(2))
    assert torch.equal(clip.seen(x), same.seen(x))
    assert torch.equal(clip.text("a cat"), same.text("a cat"))
    assert (clip.prepare.mean, clip.prepare.std) == ((0.5,) * 3, (0.25,) * 3)
    verifier = VERIFIERS.build({"name": "clip_score", "path": str(tmp_path)}).build()
    assert verifier(pixels(2).float() / 127.5 - 1, Cond(prompts=("cat", "dog"))).shape == (2,)
    given["model_cfg"]["vision_cfg"]["timm_model_name"] = "vit_base"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(given))
    with pytest.raises(ValueError, match="which have no timm_model_name"):
        images_and_words(str(tmp_path))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SigLIP as `save_pretrained` writes it, with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel

    folder = tmp_path_factory.mktemp("siglip")
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    small["num_attention_heads"] = 2
    words = {word: i for i, word in enumerate(["</s>", "<unk>", "a", "cat", "dog"])}
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config={**small, "vocab_size": len(words), "max_position_embeddings": 6},
        vision_config={**small, "image_size": SIZE, "patch_size": 4},
    )
    SiglipModel(config).save_pretrained(folder)
    spelled = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    spelled.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=spelled, pad_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    return folder


@needed
def test_siglip_goes_through_the_same_door(siglip: Path) -> None:
    from transformers import SiglipModel

    clip, images = images_and_words(str(siglip)), pixels(2)
    net = SiglipModel.from_pretrained(siglip)
    with torch.no_grad():
        theirs = net(
            input_ids=torch.tensor([[2, 3, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]]),
            pixel_values=clip.prepare(images),
        )
    words = torch.stack([clip.text("A cat"), clip.text("dog")])
    torch.testing.assert_close(words, theirs.text_embeds)
    torch.testing.assert_close(clip.seen(clip.prepare(images)), theirs.image_embeds)
    assert clip.prepare(pixels(1, 10, 40)).shape == (1, 3, SIZE, SIZE)  # squashed, not cut
    form = {"name": "clip_score", "path": str(siglip), "form": "cosine"}
    given = (images.float() / 127.5 - 1).requires_grad_()
    found = VERIFIERS.build(form).build()(given, Cond(prompts=("a cat", "dog")))
    torch.testing.assert_close(found, (clip.images(given) * words).sum(1), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(found.sum(), given)
    assert gradient.abs().sum() > 0
    with pytest.raises(ValueError, match="has 7 tokens, more than the 6 that this SigLIP"):
        clip.text("a a a a a a a")

"""DINOv2 and CLIP features of transformers, on tiny random models; preparation needs no package."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genvis.features.prepare import MEAN, STD, Prepare
from genvis.integrations.transformers_features import CLIPFeatures, DINOv2Features

INSTALLED = importlib.util.find_spec("transformers") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="needs the optional package transformers")
SIZE = 28


def pixels(n: int, height: int = 20, width: int = 33) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a tokenizer of single bytes, as `save_pretrained` writes them."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    tokenizer.save_pretrained(folder)
    n = len(words)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text = {"vocab_size": n, "bos_token_id": n - 2, "eos_token_id": n - 1, "pad_token_id": n - 1}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**small, "num_attention_heads": 4, **text},
        vision_config={**small, "num_attention_heads": 4, "image_size": SIZE, "patch_size": 7},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_preparation_is_clips() -> None:
    """Short side to size, the middle cut out, mean and standard deviation."""
    image = pixels(1)
    found = Prepare(SIZE)(image)[0]
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    wide = np.asarray(picture.resize((33 * SIZE // 20, SIZE), Image.Resampling.BICUBIC))
    left = (wide.shape[1] - SIZE) // 2
    middle = torch.tensor(wide[:, left : left + SIZE]).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    torch.testing.assert_close(found, (middle - mean) / std)
    assert Prepare(SIZE, fit="square")(image).shape == (1, 3, SIZE, SIZE)
    flat = torch.full((1, 3, 40, 9), 51, dtype=torch.uint8)
    expected = ((0.2 - mean) / std).expand(3, SIZE, SIZE)
    torch.testing.assert_close(Prepare(SIZE)(flat)[0], expected)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    for config in (DINOv2Features, CLIPFeatures):
        with pytest.raises(ValueError, match="none: no such model folder, and nothing is"):
            config(path=str(tmp_path / "none")).build()


@pytest.mark.skipif(INSTALLED, reason="transformers is installed")
def test_the_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="need the package transformers"):
        DINOv2Features(path=str(tmp_path)).build()


@needed
def test_dinov2_gives_its_class_token(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    net = Dinov2Model(Dinov2Config(**small, image_size=SIZE, patch_size=14)).eval()
    net.save_pretrained(tmp_path)
    extractor = DINOv2Features(path=str(tmp_path), size=SIZE).build()
    images = pixels(3).float() / 127.5 - 1
    found = extractor(images)
    with torch.no_grad():
        expected = net(pixel_values=extractor.prepare(pixels(3))).last_hidden_state[:, 0]
    torch.testing.assert_close(found, expected)
    assert (found.shape, extractor.name, len(extractor.sha256)) == ((3, 32), "dinov2", 64)


@needed
def test_clip_embeddings_are_the_full_models(clip: Path) -> None:
    from transformers import CLIPModel

    extractor = CLIPFeatures(path=str(clip), size=SIZE).build()
    found = extractor(pixels(3).float() / 127.5 - 1)
    with torch.no_grad():
        seen = CLIPModel.from_pretrained(clip)(
            pixel_values=extractor.prepare(pixels(3)), input_ids=torch.tensor([[52, 0, 53]])
        )
    unit = found / found.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit, seen.image_embeds, rtol=1e-5, atol=1e-6)

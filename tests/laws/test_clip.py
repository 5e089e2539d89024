"""CLIP: its tokens, its preparation of images, and the files that it is read from."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_clip import CONTEXT, SIZE, WORDS, tiny_net, write_clip, write_words
from torch import Tensor

from genvis.features.clip import CLIP
from genvis.features.clip_net import VIT_H_14, CLIPNet, Tower, official_config
from genvis.features.clip_tokens import END, START, CLIPTokenizer, words
from genvis.features.prepare import Prepare, prepare


def pixels(*shape: int, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=generator)


def test_words_are_letters_single_digits_and_the_rest() -> None:
    text = "It's  A B-52,\tÉtude½ 'LL!? x_1"
    expected = ["it", "'s", "a", "b", "-", "5", "2", ",", "étude", "½", "'ll", "!?", "x", "_", "1"]
    assert list(words(text)) == expected
    assert list(words("")) == []


def test_tokens_are_merged_in_the_order_of_the_merges(tmp_path: Path) -> None:
    write_words(tmp_path)
    tokenizer = CLIPTokenizer.from_folder(tmp_path)

    def spelled(text: str) -> list[str]:
        return [WORDS[i] for i in tokenizer.encode(text)]

    assert spelled("Cat catc dog") == [START, "cat</w>", "ca", "t", "c</w>", "dog</w>", END]
    assert spelled("é") == [START, "Ã", "©</w>", END]  # two bytes
    padded = tokenizer(["cat", "a b c"])
    assert padded.shape == (2, 5)
    assert (padded[0, 3:] == len(WORDS) - 1).all()
    with pytest.raises(ValueError, match="'a a a a' has 6 tokens, more than the 5"):
        tokenizer(["a a a a"], context=5)


def test_missing_or_wrong_words_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no vocab\.json and no merges\.txt"):
        CLIPTokenizer.from_folder(tmp_path)
    write_words(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(ValueError, match="not a pair of tokens"):
        CLIPTokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="not a CLIP vocabulary"):
        CLIPTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("size", [20, 45, 64])
def test_preparation_is_pillows_to_a_grey_level(size: int) -> None:
    """Where nothing is clipped between the two passes, which Pillow does in 8 bits."""
    given = pixels(2, 3, 45, 70, low=80, high=170)
    theirs = Prepare(size)(given)
    gap = (prepare(given.float() / 127.5 - 1, size) - theirs).abs() * 0.28 * 255
    assert gap.max() < 1.5
    assert gap.mean() < 0.5


def test_padding_shows_the_whole_image_on_black() -> None:
    white = torch.ones(1, 3, 10, 20)
    x = prepare(white, 8, "pad")
    assert x.shape == (1, 3, 8, 8)
    assert (x[:, :, 2:6] > 1).all()
    assert (x[:, :, :2] < -1).all()
    assert (x[:, :, 6:] < -1).all()
    square = torch.rand(1, 3, 11, 11) * 2 - 1
    assert torch.equal(prepare(square, 8, "pad"), prepare(square, 8))


def test_a_text_is_read_at_its_first_end() -> None:
    """Padding, masked or not, changes nothing; nor do the tokens after the end."""
    net, end = tiny_net(), len(WORDS) - 1
    ids = torch.tensor([[3, 7, 9, end, end, end], [3, 7, 9, 11, 12, end]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6]).bool()
    with torch.no_grad():
        alone = net.texts(ids[:1, :4])
        torch.testing.assert_close(net.texts(ids)[:1], alone)
        torch.testing.assert_close(net.texts(ids, mask)[:1], alone)
        other = torch.tensor([[3, 7, 9, end, 50, 60]])
        torch.testing.assert_close(net.texts(other), alone)
    with pytest.raises(ValueError, match="21 tokens, more than this CLIP's 20"):
        net.texts(torch.zeros(1, 21, dtype=torch.int64))


def test_a_folder_is_read_strictly(tmp_path: Path) -> None:
    clip = CLIP.from_folder(write_clip(tmp_path))
    net = tiny_net()
    x = prepare(pixels(2, 3, 20, 20).float() / 127.5 - 1, SIZE)
    with torch.no_grad():
        assert torch.equal(clip.net.images(x), net.images(x))
    assert clip.tokenizer is not None
    torch.testing.assert_close(clip.text("cat").norm(), torch.tensor(1.0))
    assert (clip.name, len(clip.sha256)) == (tmp_path.name, 64)
    state = {**net.state_dict(), "text_model.embeddings.position_ids": torch.arange(CONTEXT)}
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert CLIP.from_folder(tmp_path).net.state_dict().keys() == net.state_dict().keys()
    del state["logit_scale"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"does not fit CLIPNet: 1 missing \(logit_scale\)"):
        CLIP.from_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="truncated, or not a file of tensors"):
        CLIP.from_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        CLIP.from_folder(tmp_path)
    with pytest.raises(ValueError, match=r"no config\.json there; needed is a folder of CLIPModel"):
        CLIP.from_folder(tmp_path / "none")


def open_clips(net: CLIPNet) -> dict[str, Tensor]:
    """The same weights in open_clip's layout."""
    ours, found = net.state_dict(), {"logit_scale": net.logit_scale.data}
    for tower, at in (("vision_model", "visual."), ("text_model", "")):
        for k in range(2):
            mine, theirs = f"{tower}.encoder.layers.{k}", f"{at}transformer.resblocks.{k}"
            for kind in ("weight", "bias"):
                parts = [ours[f"{mine}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
                found[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(parts)
                for a, b in (
                    ("self_attn.out_proj", "attn.out_proj"),
                    ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                ):
                    found[f"{theirs}.{b}.{kind}"] = ours[f"{mine}.{a}.{kind}"]
    for kind in ("weight", "bias"):
        found[f"visual.ln_pre.{kind}"] = ours[f"vision_model.pre_layrnorm.{kind}"]
        found[f"visual.ln_post.{kind}"] = ours[f"vision_model.post_layernorm.{kind}"]
        found[f"ln_final.{kind}"] = ours[f"text_model.final_layer_norm.{kind}"]
    images, texts = "vision_model.embeddings", "text_model.embeddings"
    found["visual.conv1.weight"] = ours[f"{images}.patch_embedding.weight"]
    found["visual.class_embedding"] = ours[f"{images}.class_embedding"]
    found["visual.positional_embedding"] = ours[f"{images}.position_embedding.weight"]
    found["positional_embedding"] = ours[f"{texts}.position_embedding.weight"]
    found["token_embedding.weight"] = ours[f"{texts}.token_embedding.weight"]
    found["visual.proj"] = ours["visual_projection.weight"].mT.clone()
    found["text_projection"] = ours["text_projection.weight"].mT.clone()
    return found


def test_open_clips_layout_gives_the_same_network(tmp_path: Path) -> None:
    net, file = tiny_net(), tmp_path / "HPS.pt"
    torch.save({"state_dict": open_clips(net), "epoch": 3}, file)
    write_words(tmp_path)
    clip = CLIP.from_open_clip(file, net.config, tmp_path, Prepare(SIZE, fit="pad"))
    assert clip.name == "HPS"
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in clip.net.state_dict().items())


def test_the_published_large_one_has_its_size() -> None:
    with torch.device("meta"):
        net = VIT_H_14.build()
    assert sum(p.numel() for p in net.parameters()) == 986_109_441


def test_gradients_reach_the_pixels() -> None:
    images = (torch.rand(2, 3, 20, 24) * 2 - 1).requires_grad_()
    net = tiny_net()
    F.normalize(net.images(prepare(images, SIZE)), dim=1)[:, 0].sum().backward()
    assert images.grad is not None
    assert (images.grad[..., 2:-2] != 0).float().mean() > 0.9  # the middle square is seen


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="width a multiple of heads; got 10, 1, 3 and 4"):
        Tower(width=10, depth=1, heads=3, hidden=4)
    with pytest.raises(ValueError, match="activation"):
        official_config({"text_config": {"hidden_act": "swish"}})
    with pytest.raises(ValueError, match="size must hold a patch"):
        official_config({"vision_config": {"image_size": 8, "patch_size": 16}})

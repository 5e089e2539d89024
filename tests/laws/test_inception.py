"""Inception features: resizers to the last bit, weights that are verified, a net that is fixed."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from genvis.checkpoint import save_tensors
from genvis.evaluation.extraction import Features, extract, frechet_name
from genvis.features.inception import CONVERTED, PUBLISHED, SCRIPTED, Inception, ScriptedInception
from genvis.features.inception_net import InceptionNet
from genvis.features.resize import RESIZERS, resize

SIDES = [(32, 32), (31, 45), (299, 299), (1, 7), (400, 301), (640, 333)]


def pixels(h: int, w: int, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(h * 1000 + w)
    return torch.randint(0, 256, (n, 3, h, w), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def net() -> InceptionNet:
    """Seeded He-scaled weights, so that activations neither vanish nor explode."""
    made, generator = InceptionNet(), torch.Generator().manual_seed(0)
    for name, value in made.named_parameters():
        fan_in = value[0].numel()
        std = 0.1 if name.endswith("bias") else (2 / fan_in) ** 0.5
        torch.nn.init.normal_(value, 0, std, generator=generator)
    return made


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $GENVIS_WEIGHTS that is searched before everything else."""
    monkeypatch.setenv("GENVIS_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.mark.parametrize(("mode", "library"), [("clean", "PIL"), ("legacy_pytorch", "PyTorch")])
@pytest.mark.parametrize("sides", SIDES)
def test_resize_is_clean_fids(mode: str, library: str, sides: tuple[int, int]) -> None:
    cleanfid = pytest.importorskip("cleanfid.resize")
    kind = {"PIL": "bicubic", "PyTorch": "bilinear"}[library]
    official = cleanfid.make_resizer(library, False, kind, (299, 299))
    images = pixels(*sides)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    for given in (images, grey):
        found = resize(given, mode).permute(0, 2, 3, 1)
        for one, image in zip(found, given, strict=True):
            wanted = torch.from_numpy(official(image.permute(1, 2, 0).numpy()))
            assert torch.equal(one, wanted)


def test_clean_keeps_height_and_width_apart() -> None:
    assert resize(pixels(20, 30), "clean", (5, 9)).shape == (2, 3, 5, 9)
    assert resize(pixels(20, 30), "clean", (5, 9)).is_contiguous()


@pytest.mark.parametrize(
    ("given", "wanted"), [((3, 5), (7, 4)), ((9, 6), (4, 11)), ((1, 2), (3, 3))]
)
def test_tf1_bilinear_by_the_definition(given: tuple[int, int], wanted: tuple[int, int]) -> None:
    image = pixels(*given, n=1)
    found = resize(image, "tf1_bilinear", wanted)[0]
    source = image[0].numpy().astype(np.float32)
    for channel in range(3):
        for i in range(wanted[0]):
            for j in range(wanted[1]):
                expected = tf1_pixel(source[channel], i, j, wanted)
                assert float(found[channel, i, j]) == pytest.approx(expected, abs=1e-4)


def tf1_pixel(source: np.ndarray, i: int, j: int, wanted: tuple[int, int]) -> float:
    (height, width), (h, w) = source.shape, wanted
    y, x = i * height / h, j * width / w
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = source[top, left] * (1 - (x - left)) + source[top, right] * (x - left)
    lower = source[bottom, left] * (1 - (x - left)) + source[bottom, right] * (x - left)
    return float(upper * (1 - (y - top)) + lower * (y - top))


@pytest.mark.parametrize("mode", RESIZERS)
def test_every_resizer(mode: str) -> None:
    images = pixels(24, 40, n=3)
    found = resize(images, mode, (33, 29))
    assert found.dtype == torch.float32
    assert 0 <= found.min() <= found.max() <= 255
    assert torch.equal(resize(images[1:2], mode, (33, 29))[0], found[1])
    flat = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    torch.testing.assert_close(resize(flat, mode), torch.full((1, 3, 299, 299), 77.0))


def test_resize_refuses() -> None:
    with pytest.raises(ValueError, match=r"resize must be one of clean, .* got 'lanczos'"):
        resize(pixels(4, 4), "lanczos")
    with pytest.raises(ValueError, match=r"pixels must be \(B, 3, H, W\)"):
        resize(pixels(4, 4)[:, :1], "clean")
    with pytest.raises(ValueError, match="uint8"):
        resize(pixels(4, 4).float(), "clean")


def test_the_net_has_the_published_names_and_is_fixed(net: InceptionNet) -> None:
    state = net.state_dict()
    assert (len(state), sum(value.numel() for value in state.values())) == (472, 23_885_392)
    before = {name: value.clone() for name, value in state.items()}
    x = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen, training = net.eval()(x), net.train()(x)  # training mode must change nothing
    assert torch.equal(seen.pool, training.pool)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(value.requires_grad for value in net.parameters())
    assert (seen.pool.shape, seen.spatial.shape) == ((1, 2048), (1, 2023))
    assert [block.shape[1] for block in seen.blocks] == [64, 192, 768]
    biased = torch.nn.functional.linear(seen.pool, net.fc.weight, net.fc.bias)
    torch.testing.assert_close(seen.biased_logits, biased)
    assert not torch.equal(seen.logits, seen.biased_logits)


def test_features_do_not_depend_on_the_batch(net: InceptionNet) -> None:
    extractor = Inception(net, "0" * 64, weights="random")
    images = pixels(32, 40, n=3).float() / 127.5 - 1
    together = extract(extractor, images)
    alone = torch.cat([extractor(image[None]) for image in images])
    scale = float(alone.abs().max())
    assert float((together.values - alone).abs().max()) <= 1e-5 * scale
    assert together.values.dtype == torch.float32
    assert together.metric == "FD[random-clean:000000]"
    assert torch.equal(extractor.activations(images).pool, extractor(images))


def test_missing_weights_are_one_clear_line(nowhere: Path) -> None:
    with pytest.raises(ValueError, match="no Inception weights") as caught:
        Inception.from_published(path=nowhere)
    line = str(caught.value)
    assert "\n" not in line
    for file in PUBLISHED:
        assert f"{file.file} ({file.size:,} bytes, sha256 {file.sha256})" in line
    assert f"looked in the path given ({nowhere})" in line


@pytest.mark.parametrize("file", [file.file for file in PUBLISHED])
def test_wrong_files_are_refused_before_they_are_read(nowhere: Path, file: str) -> None:
    (nowhere / file).write_bytes(b"PK\x03\x04 cut short")
    for path in (None, nowhere, nowhere / file):
        with pytest.raises(ValueError, match="damaged, or another file: it has 14 bytes") as caught:
            Inception.from_published(path=path)
        line = str(caught.value)
        assert "\n" not in line
        assert str(nowhere / file) in line
        assert hashlib.sha256((nowhere / file).read_bytes()).hexdigest() in line
        wanted = next(known for known in PUBLISHED if known.file == file)
        assert str(wanted) in line


def test_the_order_of_places(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = nowhere / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / PUBLISHED[0].file).write_bytes(b"cache")
    with pytest.raises(ValueError, match="checkpoints"):
        Inception.from_published()
    (nowhere / PUBLISHED[2].file).write_bytes(b"mine")
    with pytest.raises(ValueError, match="it has 4 bytes") as caught:
        Inception.from_published()
    assert f"$GENVIS_WEIGHTS ({nowhere}), torch's hub cache ({cache}), clean-fid's" in str(
        caught.value
    )
    with pytest.raises(ValueError, match="it has 5 bytes"):
        Inception.from_published(path=cache)
    monkeypatch.delenv("GENVIS_WEIGHTS")
    with pytest.raises(ValueError, match=r"\$GENVIS_WEIGHTS \(not set\)"):
        Inception.from_published()


def test_other_weights_keep_another_name(net: InceptionNet, tmp_path: Path) -> None:
    state = net.state_dict()
    counters = {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(0)}  # as in the conversions
    torch.save({**state, **counters}, tmp_path / "w.pth")
    save_tensors(tmp_path / "w.safetensors", state)
    for file in ("w.pth", "w.safetensors"):
        loaded = Inception.from_file(tmp_path / file, "mine", "tf1_bilinear")
        assert loaded.name == "mine-tf1_bilinear"
        assert loaded.sha256 == hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
        assert all(torch.equal(v, state[k]) for k, v in loaded.net.state_dict().items())
    with pytest.raises(ValueError, match="cannot be called 'inception'"):
        Inception.from_file(tmp_path / "w.safetensors", "inception")
    for file in ("w.pth", "w.safetensors"):
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:4_000_000])
        with pytest.raises(ValueError, match=f"{file}: truncated"):
            Inception.from_file(tmp_path / file, "mine")
    torch.save({k: v for k, v in state.items() if k != "fc.bias"}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"1 missing \(fc.bias\)"):
        Inception.from_file(tmp_path / "less.pth", "mine")
    with pytest.raises(ValueError, match="no such file"):
        Inception.from_file(tmp_path / "none.pth", "mine")


class Detector(torch.nn.Module):
    """Shaped like clean-fid's script: `layers` takes resized and scaled images."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.AdaptiveAvgPool2d(1)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_scripts_give_pool_features() -> None:
    script = torch.jit.script(Detector())
    extractor = Inception(ScriptedInception(script), "0" * 64, weights="means")
    found = extractor(torch.ones(2, 3, 8, 8))
    torch.testing.assert_close(found, torch.full((2, 3), 127 / 128))
    with pytest.raises(ValueError, match="only pool features"):
        extractor.activations(torch.ones(2, 3, 8, 8))


def test_only_published_weights_are_called_fid(net: InceptionNet) -> None:
    for sha in (CONVERTED, SCRIPTED, SCRIPTED.upper()):
        assert frechet_name("inception-clean", sha) == f"FID[inception-clean:{sha[:6].lower()}]"
        assert Features(torch.ones(2, 2), "inception-clean", sha).metric.startswith("FID[")
    changed = CONVERTED[:-1] + "0"
    for name, sha in (("inception-clean", changed), ("inception", CONVERTED), ("FID", CONVERTED)):
        with pytest.raises(ValueError, match="cannot be called"):
            frechet_name(name, sha)
    with pytest.raises(ValueError, match="not the published Inception"):
        Inception(net, changed)
    with pytest.raises(ValueError, match="mode must be one of"):
        Inception(net, CONVERTED, "lanczos")

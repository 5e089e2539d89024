"""Every way in gives the same pictures; what is bad is named; keys alone decide augmentation."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genvis.config import build
from genvis.data import DATASETS
from genvis.data.files import FilesConfig
from genvis.data.photo_patches import PHOTOS
from genvis.data.stores import expand
from genvis.data.view import View, adm, adm_random, edm, rgb, var
from genvis.images import from_uint8, save_npz, to_uint8
from genvis.random import HashKeys
from genvis.tokenizers.pixels import PixelsConfig
from genvis.types import Dataset

SIZE = 16
VIEW = View(size=SIZE)
NAMES = [f"{kind}/{i}.png" for kind in ("cat", "dog", "owl") for i in range(4)]
CAPTIONS = {name: f"{name[:3]} number {name[4]}" for name in NAMES}


def decode(data: bytes) -> Image.Image:
    return rgb(Image.open(io.BytesIO(data)))


def noise(seed: int, width: int = SIZE, height: int = SIZE) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def png(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


PICTURES = {name: png(noise(i)) for i, name in enumerate(NAMES)}
LABELS = {name: ("cat", "dog", "owl").index(name[:3]) for name in NAMES}
TEXTS = {name.replace(".png", ".txt"): text.encode() for name, text in CAPTIONS.items()}
METADATA = "".join(
    json.dumps({"file_name": name, "text": text}) + "\n" for name, text in CAPTIONS.items()
).encode()


def write(path: Path, files: dict[str, bytes]) -> str:
    """The files as a folder, a zip, or a tar, as the path's name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return str(path)


def files(root: str, **fields: Any) -> FilesConfig:
    return build(FilesConfig, {"root": root, "view": {"size": SIZE}, "held_out": 100, **fields})


def everything(data: Dataset) -> tuple[Tensor, list[int] | None, tuple[str, ...] | None]:
    batch = data[range(len(data))]
    label = batch.cond.label
    return to_uint8(batch.x), None if label is None else label.tolist(), batch.cond.prompts


WANTED = (
    torch.stack([VIEW(decode(PICTURES[name])) for name in NAMES[1:]]),  # the first is held out
    [LABELS[name] for name in NAMES[1:]],
    tuple(CAPTIONS[name] for name in NAMES[1:]),
)


def assert_wanted(data: Dataset, captions: bool = True) -> None:
    images, labels, prompts = everything(data)
    assert torch.equal(images, WANTED[0])
    assert labels == WANTED[1]
    assert prompts == (WANTED[2] if captions else None)


@pytest.mark.parametrize("container", ["set", "set.zip", "set.tar"])
@pytest.mark.parametrize("captions", ["txt", "metadata"])
def test_class_folders_with_captions_in_any_container(
    tmp_path: Path, container: str, captions: str
) -> None:
    beside = TEXTS if captions == "txt" else {"metadata.jsonl": METADATA}
    root = write(tmp_path / container, {**PICTURES, **beside, "read.me": b"x", ".hidden.png": b""})
    data = files(root, labels="folders", captions=captions).build("train")
    assert_wanted(data)
    assert_wanted(pickle.loads(pickle.dumps(data)))  # as loader processes get it


def test_caption_files_of_other_systems(tmp_path: Path) -> None:
    """A byte-order mark is no letter, a carriage return no word, a break of Unicode no line."""
    said = b"\xef\xbb\xbfa cat\r\n\r\none\xe2\x80\xa8two\r\n"
    root = write(tmp_path / "set", {**PICTURES, **TEXTS, NAMES[1].replace("png", "txt"): said})
    data: Any = files(root, captions="txt").build("train")
    assert data.captions([0]) == [("a cat", "one\u2028two")]


@pytest.mark.parametrize("container", ["set", "set.zip"])
def test_edm(tmp_path: Path, container: str) -> None:
    """`00000/img00000007.png`, sorted by name, labels by name in dataset.json."""
    numbered = {name: f"00000/img{i:08d}.png" for i, name in enumerate(NAMES)}
    pairs = [[numbered[name], LABELS[name]] for name in reversed(NAMES)]
    stored = {numbered[name]: data for name, data in PICTURES.items()}
    stored["dataset.json"] = json.dumps({"labels": pairs}).encode()
    assert_wanted(files(write(tmp_path / container, stored), labels="edm").build("train"), False)


def test_webdataset_shards(tmp_path: Path) -> None:
    """A sample is what shares a name up to the first dot; other fields are left alone."""
    for shard in range(3):
        members: dict[str, bytes] = {}
        for i, name in enumerate(NAMES[4 * shard : 4 * shard + 4]):
            key = f"{4 * shard + i:06d}"
            members[f"{key}.png"] = PICTURES[name]
            members[f"{key}.seg.png"] = b"another field"
            members[f"{key}.cls"] = str(LABELS[name]).encode()
            members[f"{key}.txt"] = CAPTIONS[name].encode()
        write(tmp_path / f"set-{shard:03d}.tar", members)
    root = str(tmp_path / "set-{000..002}.tar")
    assert_wanted(files(root, labels="cls", captions="txt").build("train"))
    with pytest.raises(ValueError, match=r"shards have KEY\.cls"):
        files(root, labels="folders")


def test_ranges() -> None:
    assert expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("{0..1}/{0..1}") == ["0/0", "0/1", "1/0", "1/1"]
    assert expand("plain.tar") == ["plain.tar"]


def test_npz(tmp_path: Path) -> None:
    images = torch.stack([VIEW(decode(data)) for data in PICTURES.values()])
    save_npz(tmp_path / "set.npz", from_uint8(images), torch.tensor(list(LABELS.values())))
    config = {"name": "npz", "path": str(tmp_path / "set.npz"), "view": {"size": SIZE}}
    assert_wanted(DATASETS.build({**config, "held_out": 100}).build("train"), False)
    np.savez(tmp_path / "bare.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    bare = DATASETS.build({**config, "path": str(tmp_path / "bare.npz")}).build("val")
    assert everything(bare)[1] is None
    assert len(bare) == 2  # every tenth of twelve


def test_torchvision_from_the_disk(tmp_path: Path) -> None:
    """MNIST's four files, with three images each, where torchvision looks for them."""
    config = {"name": "torchvision", "root": str(tmp_path), "view": {"size": 28}}
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = {"train": noise(1, 28, 28 * 3), "t10k": noise(2, 28, 28 * 3)}
    for part, picture in images.items():
        head = struct.pack(">4i", 0x803, 3, 28, 28)
        data = np.array(picture)[:, :, 0].tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + data)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i3B", 0x801, 3, 7, 0, 9))
    for split, part in (("train", "train"), ("val", "t10k")):
        data = DATASETS.build({**config, "dataset": "MNIST"}).build(split)
        pixels, labels, prompts = everything(data)
        assert (labels, prompts) == ([7, 0, 9], None)
        grey = torch.from_numpy(np.array(images[part])[:, :, 0]).view(3, 1, 28, 28)
        assert torch.equal(pixels, grey.expand(-1, 3, -1, -1))
    missing = DATASETS.build({**config, "dataset": "CIFAR10"})
    with pytest.raises(
        ValueError, match=r"CIFAR10: not found.*cifar-10-batches-py.*data\.download"
    ):
        missing.build("train")
    with pytest.raises(ValueError, match="split must be train or val, got 'test'"):
        missing.build("test")


def test_hugging_face(tmp_path: Path) -> None:
    config = {
        "name": "huggingface", "path": str(tmp_path / "set"), "view": {"size": SIZE},
        "label": "label", "caption": "text", "held_out": 100,
    }  # fmt: skip
    try:
        import datasets
    except ModuleNotFoundError:
        with pytest.raises(ModuleNotFoundError, match="huggingface needs datasets: pip install"):
            DATASETS.build(config).build("train")
        return
    rows = {
        "image": [{"bytes": data, "path": None} for data in PICTURES.values()],
        "label": list(LABELS.values()),
        "text": list(CAPTIONS.values()),
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "set"))
    assert_wanted(DATASETS.build(config).build("train"))
    with pytest.raises(ValueError, match=r"has no column 'caption'; it has image, label, text"):
        DATASETS.build({**config, "caption": "caption"}).build("train")
    with pytest.raises(ValueError, match=r"^lab/set: no such folder; set data\.download"):
        DATASETS.build({**config, "path": "lab/set"}).build("train")


def test_a_caption_may_hold_any_character(tmp_path: Path) -> None:
    said = "one\u2028two\x85three"
    lines = [json.dumps({"file_name": n, "text": said}, ensure_ascii=False) for n in NAMES]
    stored = {**PICTURES, "metadata.jsonl": "\n\n".join(lines).encode()}
    data = files(write(tmp_path / "set", stored), captions="metadata").build("val")
    assert data[[0]].cond.prompts == (said,)
    write(tmp_path / "set", {"metadata.jsonl": b"\xff"})
    with pytest.raises(ValueError, match=r"set: metadata\.jsonl: not UTF-8"):
        files(str(tmp_path / "set"), captions="metadata").build("val")


def test_splits(tmp_path: Path) -> None:
    """Every n-th is held out; or train and val are two places."""
    root = write(tmp_path / "set", PICTURES)
    parts = [everything(files(root, held_out=3).build(split))[0] for split in ("train", "val")]
    assert [len(part) for part in parts] == [8, 4]
    assert len(torch.cat(parts).unique(dim=0)) == 12
    write(tmp_path / "two" / "val", {name: PICTURES[name] for name in NAMES[:3]})
    write(tmp_path / "two" / "train", {name: PICTURES[name] for name in NAMES[3:]})
    two = files(str(tmp_path / "two" / "{split}"))
    assert [len(two.build(split)) for split in ("train", "val")] == [9, 3]
    with pytest.raises(ValueError, match=r"holds train and val: write .*/two/\{split\}"):
        files(str(tmp_path / "two"), labels="folders").build("train")


BAD: dict[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "cut": (lambda f: f.update({"dog/1.png": PICTURES["dog/1.png"][:-50]}), r"dog/1\.png: .*trunc"),
    "not an image": (lambda f: f.update({"owl/2.png": b"oops"}), r"owl/2\.png: not an image"),
    "empty file": (lambda f: f.update({"owl/2.png": b""}), r"owl/2\.png: not an image"),
    "no caption": (lambda f: f.pop("cat/3.txt"), r"cat/3\.png: has no caption"),
    "blank caption": (lambda f: f.update({"cat/3.txt": b" \n"}), r"cat/3\.png: has no caption"),
    "no class": (
        lambda f: f.update({"x.png": PICTURES["dog/0.png"], "x.txt": b"x"}),
        "x.png: has no label",
    ),
    "empty class": (lambda f: f.update({"bee/bee.txt": b"no bees"}), "bee: an empty class"),
}


@pytest.mark.parametrize("container", ["set", "set.zip", "set.tar"])
@pytest.mark.parametrize("kind", BAD)
def test_one_bad_one_is_named_and_none_is_skipped(
    tmp_path: Path, kind: str, container: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = {**PICTURES, **TEXTS}
    change, message = BAD[kind]
    change(stored)
    root = write(tmp_path / container, stored)
    with pytest.raises(ValueError, match=message):
        everything(files(root, labels="folders", captions="txt").build("train"))
    data = files(root, labels="folders", captions="txt", allow=1).build("train")
    assert len(data.left_out) == 1
    assert "1 left out (1 allowed)" in capsys.readouterr().err
    images, labels, _ = everything(data)
    usable = 11 if kind in ("empty class", "no class") else 10
    assert len(images) == usable
    shift = 1 if kind == "empty class" else 0  # bee is class 0, though empty
    assert set(labels or ()) == {0 + shift, 1 + shift, 2 + shift}


def test_the_limit_counts_all_kinds_together(tmp_path: Path) -> None:
    stored = {**PICTURES, **TEXTS}
    for kind in ("cut", "no caption", "empty class"):
        BAD[kind][0](stored)
    root = write(tmp_path / "set", stored)
    with pytest.raises(ValueError, match=r"3 bad, more than the 2 .*bee.*cat/3\.png.*dog/1\.png"):
        files(root, labels="folders", captions="txt", allow=2).build("train")
    data = files(root, labels="folders", captions="txt", allow=3).build("train")
    assert (len(data), len(data.left_out)) == (9, 3)


@pytest.mark.parametrize(
    ("stored", "fields", "message"),
    [
        ({}, {}, "holds no picture"),
        (PICTURES, {"labels": "edm"}, r"dataset\.json: no such file; are the folders"),
        ({"dataset.json": b'{"labels": null}'}, {"labels": "edm"}, "has no labels"),
        ({"dataset.json": b'{"labels": [["a", [0, 1]]]}'}, {"labels": "edm"}, "not an integer"),
        ({"dataset.json": b"[]"}, {"labels": "edm"}, "expected .*labels"),
        (PICTURES, {"captions": "metadata"}, r"metadata\.jsonl: no such file; it belongs beside"),
        ({"metadata.jsonl": b'{"text": "x"}'}, {"captions": "metadata"}, "line 1: .*file_name"),
        (
            {**PICTURES, "metadata.jsonl": METADATA + b'{"file_name": "y.png", "text": "y"}\n'},
            {"captions": "metadata"},
            r"y\.png: only in metadata\.jsonl",
        ),
    ],
)
def test_layouts_that_are_not_what_was_said(
    tmp_path: Path, stored: dict[str, bytes], fields: dict[str, str], message: str
) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=message):
        files(write(tmp_path / "set", stored), **fields).build("train")


@pytest.mark.parametrize("name", ["set", "set.zip", "set.tar"])
def test_a_missing_or_damaged_container_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: (no such|missing)"):
        files(str(tmp_path / name)).build("train")
    if name != "set":
        path = Path(write(tmp_path / name, PICTURES))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=name):
            everything(files(str(path)).build("train"))


def reference_adm(picture: Image.Image, size: int) -> np.ndarray:
    """The crop as its definition says it, step by step."""
    while min(picture.size) >= 2 * size:
        picture = picture.resize(tuple(x // 2 for x in picture.size), resample=Image.Resampling.BOX)
    scale = size / min(*picture.size)
    picture = picture.resize(
        tuple(round(x * scale) for x in picture.size), resample=Image.Resampling.BICUBIC
    )
    values = np.array(picture)
    top, left = (values.shape[0] - size) // 2, (values.shape[1] - size) // 2
    return values[top : top + size, left : left + size]


@pytest.mark.parametrize(
    ("width", "height"), [(16, 16), (17, 40), (100, 31), (64, 65), (15, 22), (33, 200)]
)
def test_adm_crop_is_exact(width: int, height: int) -> None:
    picture = noise(0, width, height)
    assert (np.array(adm(picture, 16)) == reference_adm(picture, 16)).all()


def test_random_crops_reach_everywhere_and_stay_inside() -> None:
    picture = noise(1, 50, 40)
    assert adm_random(picture, 16) == adm(picture, 16)
    for crop in (adm_random, var):
        found = {
            np.array(crop(picture, 16, (s, y, x))).tobytes()
            for s in (0.0, 0.999)
            for y in (0.0, 0.999)
            for x in (0.0, 0.999)
        }
        assert len(found) == (
            2 + 4 if crop is adm_random else 4
        )  # at scale 0 ADM has no room above
        assert crop(picture, 16, (0.5, 0.5, 0.5)).size == (16, 16)
    side = Image.new("RGB", (18, 18))  # VAR: 1.125 x 16, so the corner moves by up to 2 pixels
    side.putpixel((2, 2), (255, 255, 255))
    assert var(side, 16, (0, 0.999, 0.999)).getpixel((0, 0)) == (255, 255, 255)
    assert var(side, 16, (0, 0, 0)).getpixel((2, 2)) == (255, 255, 255)
    assert edm(noise(1, 16, 20), 16) == noise(1, 16, 20).crop((0, 2, 16, 18))


def test_pictures_are_upright_rgb_on_white() -> None:
    tall = noise(2, 8, 16)
    turned = tall.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    assert (np.array(decode(buffer.getvalue())) == np.array(tall)).all()
    clear = Image.new("RGBA", (2, 2), (9, 9, 9, 0))
    assert decode(png(clear)).getpixel((0, 0)) == (255, 255, 255)
    grey = Image.new("L", (2, 2), 77)
    assert decode(png(grey)).getpixel((1, 1)) == (77, 77, 77)
    deep = Image.fromarray(np.full((2, 2), 40_000, np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        decode(png(deep))


def test_augmentation_is_a_function_of_the_row_s_key(tmp_path: Path) -> None:
    """Whatever is beside it; flips are mirror images, captions are among the picture's own."""
    lines = {name.replace(".png", ".txt"): b"one\ntwo\nthree\n" for name in NAMES}
    root = write(tmp_path / "set", {**PICTURES, **lines})
    view = {"size": SIZE, "flip": True}
    data = files(root, view=view, labels="folders", captions="txt").build("train")
    keys = HashKeys.of(0, range(64))
    batch = data.augmented([k % 11 for k in range(64)], keys)
    for k in (0, 5, 33):
        alone = data.augmented([k % 11], HashKeys.of(0, [k]))
        assert torch.equal(alone.x[0], batch.x[k])
        assert (alone.cond.prompts or ())[0] == (batch.cond.prompts or ())[k]
    plain = data[[k % 11 for k in range(64)]]
    assert set(plain.cond.prompts or ()) == {"one"}
    assert set(batch.cond.prompts or ()) == {"one", "two", "three"}
    same = (batch.x == plain.x).flatten(1).all(1)
    mirrored = (batch.x == plain.x.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48  # four standard errors around a half
    assert torch.equal(data[[3]].x, data[[3]].x)


def test_nothing_that_has_a_left_and_a_right_can_be_flipped() -> None:
    for name in ("digits", "shapes", "glyphs"):
        fields = DATASETS.resolve(name).__dataclass_fields__
        assert not {"flip", "view"} & fields.keys()
        small = {} if name == "digits" else {"count": 4, "held_out": 4}
        assert not hasattr(DATASETS.build({"name": name, **small}).build("train"), "augmented")


@pytest.mark.parametrize(
    ("name", "fields", "classes"),
    [
        ("shapes", {"task": "class"}, 64),
        ("shapes", {"task": "text"}, 7),
        ("glyphs", {}, 62),
        ("photo_patches", {}, None),
        ("fake", {"classes": 5}, 5),
    ],
)
def test_drawn_datasets(name: str, fields: dict[str, Any], classes: int | None) -> None:
    """Images of the right form, a function of the index alone, others in val."""
    if name == "photo_patches":
        pytest.importorskip("skimage")
    config = DATASETS.build({"name": name, "size": 24, "count": 40, "held_out": 20, **fields})
    train, val = config.build("train"), config.build("val")
    assert (len(train), len(val)) == (40, 20)
    batch = train[range(40)]
    assert batch.x.shape == (40, 3, 24, 24)
    assert -1 <= batch.x.min() < batch.x.max() <= 1
    again = config.build("train")[[7, 3]]
    assert torch.equal(again.x, batch.x[[7, 3]])
    held_out = val[range(20)].x
    assert not (held_out[:, None] == batch.x[None]).flatten(2).all(2).any()
    if classes is None:
        assert batch.cond.label is None
    else:
        label = batch.cond.label
        assert label is not None
        assert 0 <= label.min() < label.max() < classes
    if name != "fake":
        other = DATASETS.build({**DATASETS.dump(config), "seed": 1}).build("train")
        assert not torch.equal(other[range(4)].x, batch.x[:4])
    with pytest.raises(ValueError, match="split"):
        config.build("test")


def test_every_photograph_is_in_one_split() -> None:
    assert not set(PHOTOS["train"]) & set(PHOTOS["val"])


def test_glyphs_can_be_read() -> None:
    """Ink and paper differ, and something is drawn in every image."""
    images = DATASETS.build({"name": "glyphs", "count": 200}).build("train")[range(200)].x
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1).flatten(1)
    assert (luma.amax(1) - luma.amin(1)).min() > 0.4


def test_grey_pixels_have_one_channel_and_come_back_exactly() -> None:
    images = DATASETS.build({"name": "digits", "size": 16}).build("val")[range(50)].x
    grey = PixelsConfig(channels=1).build()
    z = grey.encode(images).mean
    assert z.shape == (50, 1, 16, 16)
    assert torch.equal(grey.decode(z), images)
    colored = PixelsConfig(channels=3).build()
    assert torch.equal(colored.decode(colored.encode(images).mean), images)

"""Where evaluated images come from: what is read, and one clear line for what cannot be."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from genvis.evaluation.sources import Making, source_of
from genvis.images import from_uint8, save_npz


def pixels(n: int, height: int = 6, width: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def write(folder: Path, images: Tensor, name: str = "{:03d}.png") -> Path:
    for i, image in enumerate(images):
        path = folder / name.format(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder


def archive(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for file in sorted(folder.rglob("*"), reverse=True):
            made.write(file, file.relative_to(folder))
    return path


def tar(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as made:
        made.add(folder, "./")
    return path


def opened(path: Path | str) -> object:
    return source_of(path).open(Making(), 4)


def test_a_folder_a_zip_tars_and_an_npz_hold_the_same_images(tmp_path: Path) -> None:
    images, labels = pixels(7), torch.arange(7) % 3
    folder = write(tmp_path / "folder", images, "deep/{:03d}.png")
    save_npz(tmp_path / "samples.npz", from_uint8(images), labels)
    array = images.permute(0, 2, 3, 1).numpy()
    np.savez_compressed(tmp_path / "small.npz", arr_0=array)
    np.savez(tmp_path / "bare.npz", arr_0=array)
    names = ["folder", "samples.npz", "small.npz", "bare.npz"]
    paths = [*(tmp_path / name for name in names), archive(folder, tmp_path / "x.zip"), tmp_path]
    write(tmp_path / "late", images[4:], "{:03d}.png")
    tar(write(tmp_path / "early", images[:4], "{:03d}.png"), tmp_path / "00.tar")
    tar(tmp_path / "late", tmp_path / "01.tar")
    paths.insert(0, tmp_path / "{00..01}.tar")
    for path in paths:  # the last is a sample folder
        found = opened(path)
        assert len(found) == 7
        for rows in (range(7), range(2, 5), range(6, 7)):
            read, cond = found.read(rows)
            assert torch.equal(read, images[rows.start : rows.stop]), path
            if "samples" in str(path) or path == tmp_path:
                assert torch.equal(cond.label, labels[rows.start : rows.stop])
            else:
                assert cond.label is None


def test_a_folder_with_prompts(tmp_path: Path) -> None:
    write(tmp_path, pixels(3))
    for i in range(3):
        (tmp_path / f"{i:03d}.txt").write_text(f"number {i}\n")
    assert opened(tmp_path).read(range(1, 3))[1].prompts == ("number 1", "number 2")
    (tmp_path / "001.txt").unlink()
    with pytest.raises(ValueError, match=r"001\.png has no prompt"):
        opened(tmp_path)


def test_images_are_as_they_are_stored(tmp_path: Path) -> None:
    """Not upright, unlike training data; what is transparent shows white there and here."""
    (image,) = pixels(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    stored = Image.fromarray(image.permute(1, 2, 0).numpy())
    stored.save(tmp_path / "0.png", exif=exif)
    Image.new("RGBA", stored.size, (9, 9, 9, 0)).save(tmp_path / "1.png")
    read, _ = opened(tmp_path).read(range(2))
    assert torch.equal(read[0], image)
    assert (read[1] == 255).all()


def test_a_changed_file_is_another_set(tmp_path: Path) -> None:
    write(tmp_path / "a", pixels(3))
    before = opened(tmp_path / "a").identity
    assert opened(tmp_path / "a").identity == before
    write(tmp_path / "a", pixels(1, seed=5), "002.png")
    assert opened(tmp_path / "a").identity != before


def test_mixed_sizes_are_one_clear_line(tmp_path: Path) -> None:
    write(tmp_path, pixels(3))
    write(tmp_path, pixels(1, 9, 4), "x.png")
    message = r"images must have one size: x\.png has 4 x 9 pixels, 000\.png has 5 x 6 pixels"
    with pytest.raises(ValueError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_truncated_png_is_one_clear_line(tmp_path: Path, zipped: bool) -> None:
    folder = write(tmp_path / "f", pixels(3, 40, 40))
    data = (folder / "001.png").read_bytes()
    for keep in (len(data) // 2, 10, 0):  # in the pixels, in the header, nothing
        (folder / "001.png").write_bytes(data[:keep])
        path = archive(folder, tmp_path / "f.zip") if zipped else folder
        damage = r"f(\.zip)?: 001\.png: (.*truncated|not an image)"
        with pytest.raises(ValueError, match=damage) as caught:
            opened(path).read(range(3))
        assert "\n" not in str(caught.value)


def test_an_array_by_columns_is_read_as_any_other(tmp_path: Path) -> None:
    images = pixels(7)
    array = images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "columns.npz", arr_0=np.asfortranarray(array))
    assert torch.equal(opened(tmp_path / "columns.npz").read(range(2, 5))[0], images[2:5])


def test_an_unfinished_run_is_no_folder_of_pictures(tmp_path: Path) -> None:
    """Its previews, or the chunks that are there so far, are not what it will have made."""
    write(tmp_path / "run" / "samples", pixels(3), "step_{:03d}.png")
    assert len(opened(tmp_path / "run")) == 3
    (tmp_path / "run" / "run.json").write_text("{}")
    wanted = r"run: an unfinished run: it has neither model/.* nor samples\.npz"
    with pytest.raises(ValueError, match=wanted):
        opened(tmp_path / "run")
    assert len(opened(tmp_path / "run" / "samples")) == 3
    save_npz(tmp_path / "run" / "samples.npz", from_uint8(pixels(5)), None)
    assert len(opened(tmp_path / "run")) == 5


def test_other_bad_sources(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "cut.zip").write_bytes(b"PK")
    np.savez(tmp_path / "wrong.npz", arr_0=np.zeros((3, 4, 4), np.uint8))
    np.savez(tmp_path / "labels.npz", arr_0=np.zeros((3, 4, 4, 3), np.uint8), arr_1=np.arange(2))
    np.savez(tmp_path / "none.npz", mu=np.zeros(3))
    deep = np.zeros((8, 8), np.uint16)
    (tmp_path / "deep").mkdir()
    Image.fromarray(deep).save(tmp_path / "deep" / "a.png")
    for name, message in (
        ("empty", "holds no images"),
        ("notes.txt", r"neither an \.npz, \.zip, \.tar, \.yaml nor a folder"),
        ("cut.zip", "missing or not a zip"),
        ("wrong.npz", r"arr_0 must be \(N, H, W, 3\) uint8"),
        ("labels.npz", "arr_1 must be 3 integer labels"),
        ("none.npz", "truncated, or without arr_0"),
        ("deep", "more than 8 bits a channel"),
        ("missing", "no such file or folder"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            opened(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)

"""Images at the border to files: nothing broken goes in or out unnoticed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genvis.images import from_uint8, grid, load_npz, save_npz, to_uint8


def test_every_8_bit_value_survives_a_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_uint8(from_uint8(pixels)), pixels)
    assert to_uint8(torch.tensor([[[[-3.0]]], [[[3.0]]]])).flatten().tolist() == [0, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_broken_values_are_not_black_pixels(value: float) -> None:
    images = torch.zeros(2, 3, 4, 4)
    images[1, 2, 3, 0] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        to_uint8(images)


def test_samples_survive_a_file(tmp_path: Path) -> None:
    images = from_uint8(torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8))
    labels = torch.arange(5)
    save_npz(tmp_path / "x.npz", images, labels)
    loaded = load_npz(tmp_path / "x.npz")
    assert torch.equal(loaded[0], images)
    assert torch.equal(loaded[1], labels)


GOOD = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": GOOD}, "without arr_0 and arr_1"),
        ({"arr_0": GOOD[0], "arr_1": np.arange(4)}, r"arr_0 must be \(N, H, W, 3\) uint8"),
        ({"arr_0": GOOD.astype(float), "arr_1": np.arange(4)}, "uint8, got .* float64"),
        ({"arr_0": GOOD, "arr_1": np.arange(3)}, "arr_1 must be 4 integer labels"),
        ({"arr_0": GOOD, "arr_1": np.zeros(4)}, "arr_1 must be 4 integer labels"),
    ],
)
def test_other_arrays_are_named(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        load_npz(tmp_path / "x.npz")
    assert "x.npz" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1, 40, 200, -20])
def test_a_damaged_file_is_named(tmp_path: Path, keep: int) -> None:
    save_npz(tmp_path / "whole.npz", torch.zeros(4, 3, 8, 8), torch.arange(4))
    data = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data[:keep])
    with pytest.raises(ValueError, match=r"x\.npz: truncated"):
        load_npz(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="no such sample file"):
        load_npz(tmp_path / "none.npz")


def test_damage_inside_a_compressed_file_is_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)
    np.savez_compressed(tmp_path / "x.npz", arr_0=pixels, arr_1=np.arange(4))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    for position in range(60, 400, 20):  # at some of them zlib itself gives up
        data[position] ^= 255
        (tmp_path / "x.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.npz: truncated"):
            load_npz(tmp_path / "x.npz")


def test_one_array_is_not_a_sample_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", GOOD)
    with pytest.raises(ValueError, match=r"x\.npy: truncated, or without arr_0 and arr_1"):
        load_npz(tmp_path / "x.npy")


def test_a_grid_has_a_tile_for_every_image() -> None:
    picture = grid(torch.ones(6, 3, 8, 8), columns=3, scale=2)
    assert picture.shape == (3, 2 * (16 + 2) + 2, 3 * (16 + 2) + 2)
    assert (picture == 255).all()

"""LPIPS from weight files in the published layouts: the definition, and what is missing by name."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from genvis.features.lpips import BACKBONES, LPIPS, SCALE, SHIFT

MAKERS = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Random weights under the names and shapes of the published files."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(exist_ok=True)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in MAKERS[name](weights=None).features.state_dict().items()}
    state = {f"features.{k}": 0.05 * torch.randn(s, generator=generator) for k, s in shapes.items()}
    heads = {
        f"lin{k}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
        for k, (_, channels) in enumerate(BACKBONES[name].taps)
    }
    torch.save({**state, "classifier.1.weight": torch.zeros(2, 2)}, folder / BACKBONES[name].file)
    torch.save(heads, folder / BACKBONES[name].heads)
    return {**state, **heads}


def images(n: int, seed: int, side: int = 64) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_the_definition(tmp_path: Path, name: str) -> None:
    """Taps through torchvision's own network, then the formula written out."""
    state, a, b = weights(tmp_path, name), images(2, 1), images(2, 2)
    found = LPIPS.from_weights(name, tmp_path)(a, b)
    layers = MAKERS[name](weights=None).features
    layers.load_state_dict({k[9:]: v for k, v in state.items() if k.startswith("features.")})
    shift, scale = (torch.tensor(each).view(1, 3, 1, 1) for each in (SHIFT, SCALE))
    expected = torch.zeros(2)
    for k, (index, channels) in enumerate(BACKBONES[name].taps):
        maps = [layers[: index + 1].eval()((x - shift) / scale).detach() for x in (a, b)]
        assert maps[0].shape[1] == channels
        x, y = (m / (m.square().sum(1, keepdim=True).sqrt() + 1e-10) for m in maps)
        weight = state[f"lin{k}.model.1.weight"].view(1, -1, 1, 1)
        expected += ((x - y).square() * weight).sum(1).mean((1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_it_is_a_distance_of_each_pair(tmp_path: Path) -> None:
    weights(tmp_path, "alex")
    lpips, a, b = LPIPS.from_weights("alex", tmp_path), images(3, 1), images(3, 2)
    assert lpips(a, a).tolist() == [0, 0, 0]
    torch.testing.assert_close(lpips(a, b), lpips(b, a))
    assert lpips(a, b).min() > 0
    torch.testing.assert_close(lpips(a[1:2], b[1:2])[0], lpips(a, b)[1], rtol=1e-5, atol=1e-7)
    assert (lpips.name, len(lpips.sha256)) == ("lpips-alex", 64)


def test_missing_and_wrong_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENVIS_LPIPS_WEIGHTS", raising=False)
    with pytest.raises(ValueError, match=r"set \$GENVIS_LPIPS_WEIGHTS to one with alexnet-owt"):
        LPIPS.from_weights()
    monkeypatch.setenv("GENVIS_LPIPS_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"alexnet-owt-7be5be79\.pth is missing"):
        LPIPS.from_weights()
    with pytest.raises(ValueError, match="backbone must be one of alex, vgg"):
        LPIPS.from_weights("squeeze")
    weights(tmp_path, "alex")
    (tmp_path / "alex.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=r"alex\.pth: truncated"):
        LPIPS.from_weights()
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / "alex.pth")
    with pytest.raises(ValueError, match="4 missing"):
        LPIPS.from_weights()

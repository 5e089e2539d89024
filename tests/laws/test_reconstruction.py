"""What tokenizers are trained by and judged by."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genvis.config import build
from genvis.data.digits import DigitsConfig
from genvis.data.photo_patches import PhotoPatchesConfig
from genvis.evaluation.reconstruction import Reconstructing, codes
from genvis.evaluation.records import read
from genvis.images import load_images, load_npz
from genvis.nn.discriminator import PatchDiscriminatorConfig
from genvis.objectives.adversary import Hinge, Vanilla, frozen
from genvis.objectives.perceptual import ClassifierDistance, Gradients, LPIPSDistance, Perceptual
from genvis.tokenizers import TOKENIZERS
from genvis.tokenizers.conv import ConvConfig
from genvis.tokenizers.discrete import DiscreteConfig
from genvis.tokenizers.quantizers.scalar import FSQConfig

DISTANCES = {"classifier": ClassifierDistance(source="digits-cnn-v1"), "gradients": Gradients()}


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_grows_with_the_damage(name: str) -> None:
    distance: Perceptual = DISTANCES[name]
    images = DigitsConfig(size=16).build("val")[range(8)].x
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    net = distance.build()
    none, little, more = (net(images + s * noise, images) for s in (0, 0.1, 0.5))
    assert none.shape == (8,)
    assert (none == 0).all()
    assert (little > 0).all()
    assert (little < more).all()


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_can_be_descended_even_from_a_blank(name: str) -> None:
    blank = torch.full((2, 3, 16, 16), -1.0, requires_grad=True)
    images = DigitsConfig(size=16).build("val")[range(2)].x
    net = DISTANCES[name].build()
    before = net(blank, images)
    (gradient,) = torch.autograd.grad(before.sum(), blank)
    assert gradient.isfinite().all()
    assert (net(blank - 1e-2 * gradient / gradient.norm(), images) < before).any()


def test_lpips_without_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENVIS_LPIPS_WEIGHTS", raising=False)
    with pytest.raises(ValueError, match=r"no LPIPS weights: .* nothing is downloaded"):
        LPIPSDistance(folder=str(tmp_path)).build()


def test_a_discriminator_judges_every_image_by_itself() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminatorConfig(width=8, halvings=2).build()
    images = torch.randn(4, 3, 16, 24)
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]))
    with pytest.raises(ValueError, match="at least 16 pixels a side"):
        net(torch.zeros(1, 3, 8, 16))


@pytest.mark.parametrize("game", [Hinge(), Vanilla()])
def test_both_sides_of_a_game_pull_apart(game: Hinge | Vanilla) -> None:
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    up, down = torch.autograd.grad(game.judge(real, fake).sum(), (real, fake))
    assert (up < 0).all()  # descending raises the logits of real images
    assert (down > 0).all()
    (fooling,) = torch.autograd.grad(game.fool(fake).sum(), fake)
    assert (fooling < 0).all()


def test_a_frozen_judge_passes_gradients_and_keeps_none() -> None:
    net = PatchDiscriminatorConfig(width=8, halvings=1).build()
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    with frozen(net) as judge:
        judge(images).sum().backward()
    assert images.grad is not None
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_a_collapsed_scale_shows_beside_the_total() -> None:
    maps = {"1x1": torch.zeros(6, 1, dtype=torch.int64), "2x2": torch.arange(24).view(6, 4) % 8}
    found = codes(maps, num_codes=8)
    assert found["codebook usage"] == 1
    assert found["share of codes at 1x1"] == pytest.approx(1 / 6)
    assert found["perplexity at 1x1"] == pytest.approx(1)
    assert found["perplexity at 2x2"] == pytest.approx(8)


def test_a_report_leaves_pairs_and_records(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = ConvConfig(width=8, multipliers=(1, 2), blocks=1, groups=4)
    net = DiscreteConfig(nets=nets, quantizer=FSQConfig(levels=(3, 3)), channels=4).build().eval()
    data = {"name": "digits", "size": 16}
    wanted = build(Reconstructing, {"data": data, "count": 6, "batch": 4, "svm": True})
    records = {record.metric: record for record in wanted.report(net, tmp_path, "tiny")}
    assert {"PSNR", "SSIM", "codebook usage", "SVM accuracy", "GFLOPs per image"} <= records.keys()
    assert records["GFLOPs per image"].value > 0
    assert len(read(tmp_path / "records.jsonl")) == len(records)
    assert (tmp_path / "pairs.png").exists()
    images, labels = load_npz(tmp_path / "originals.npz")
    held_out = DigitsConfig(size=16).build("val")[range(6)]
    assert torch.equal(labels, held_out.cond.label)
    assert (images - held_out.x).abs().max() < 1 / 127
    assert load_npz(tmp_path / "reconstructions.npz")[0].shape == images.shape


TOWER = {"width": 24, "depth": 1, "heads": 2}
VITOK = {"name": "vitok", "size": 16, "patch": 4, "code": 3, "encoder": TOWER, "decoder": TOWER}


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"name": "pixels"},
        {"name": "scaled", "tokenizer": VITOK, "std": 2.0},
        {"name": "tiled", "tokenizer": VITOK, "factor": 4, "tile": 4, "overlap": 0},
    ],
    ids=lambda fields: fields["name"],
)
def test_every_kind_of_tokenizer_can_be_measured(tokenizer: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = TOKENIZERS.build(tokenizer).build().eval()
    data = {"name": "photo_patches", "size": 16, "held_out": 5}
    wanted = build(Reconstructing, {"data": data, "batch": 4})
    values = {record.metric: record.value for record in wanted.report(net, tmp_path, "tiny")}
    assert (values["PSNR"] == 100) == (tokenizer["name"] == "pixels")
    images, labels = load_images(tmp_path / "reconstructions.npz")
    assert labels is None
    expected = net.decode(net.encode(PhotoPatchesConfig(size=16).build("val")[range(5)].x).mode())
    assert (images - expected).abs().max() < 1 / 127


def test_a_judge_needs_labels(tmp_path: Path) -> None:
    wanted = build(Reconstructing, {"data": {"name": "photo_patches"}, "svm": True})
    with pytest.raises(ValueError, match="svm needs labels"):
        wanted.report(TOKENIZERS.build({"name": "pixels"}).build(), tmp_path / "out", "pixels")
    assert not (tmp_path / "out").exists()

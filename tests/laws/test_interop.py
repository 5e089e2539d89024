"""Other people's evaluation code on what is written here, and their formulas on our features.

clean-fid runs as it is. pytorch-fid and torch-fidelity are not installed: their formulas for the
Frechet distance (SciPy's square root of the product, eigenvalues of the product) are applied here.
"""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from genvis.evaluation.extraction import Features
from genvis.evaluation.frechet import frechet_distance
from genvis.evaluation.kid import kid_of_rows
from genvis.evaluation.observe import observe
from genvis.evaluation.sources import Making, source_of
from genvis.evaluation.statistics import Statistics
from genvis.features.inception import Inception
from genvis.features.inception_net import InceptionNet
from genvis.images import from_uint8, png, save_npz
from genvis.random import HashKeys

SHA = "0" * 64


@pytest.fixture(scope="module")
def inception() -> Inception:
    """The published layout with seeded weights: the published ones are nobody's to ship."""
    net, generator = InceptionNet(), torch.Generator().manual_seed(0)
    for name, value in net.named_parameters():
        std = 0.1 if name.endswith("bias") else (2 / value[0].numel()) ** 0.5
        torch.nn.init.normal_(value, 0, std, generator=generator)
    return Inception(net, SHA, weights="seeded")


def pixels(n: int, seed: int) -> Tensor:
    coarse = HashKeys.of(seed, range(n)).uniform((3, 5, 4))
    smooth = torch.nn.functional.interpolate(coarse, size=(40, 32), mode="bilinear")
    return (256 * smooth).to(torch.uint8)


def features(seed: int, n: int = 150, dim: int = 12) -> Tensor:
    mix = torch.eye(dim) + 0.3 * HashKeys.of(99, range(dim)).normal((dim,))
    return (HashKeys.of(seed, range(n)).normal((dim,)) @ mix + 0.1 * seed).double()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_clean_fid_sees_the_features_we_see(
    inception: Inception, tmp_path: Path, kind: str
) -> None:
    """Their reader and resizer, our network: the same rows, so the same FID."""
    fid = pytest.importorskip("cleanfid.fid")
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(pixels(4, 1)):
        (folder / f"{i:06d}.png").write_bytes(png(image))
    source = folder
    if kind == "zip":
        import zipfile

        source = tmp_path / "images.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)

    def network(batch: Tensor) -> Tensor:  # resized already, in [0, 255]
        return inception.net.pool((batch.float() - 128) / 128)

    theirs = fid.get_folder_features(
        str(source), network, num_workers=0, batch_size=4, device=torch.device("cpu"),
        mode="clean", verbose=False,
    )  # fmt: skip
    seen = observe(source_of(source).open(Making(), 4), inception, tmp_path / "out", chunk=4)
    ours = seen.rows("features").numpy()
    order = range(4) if kind == "folder" else [np.abs(theirs - row).sum(1).argmin() for row in ours]
    assert sorted(order) == [0, 1, 2, 3]  # clean-fid reads a zip in no fixed order
    np.testing.assert_allclose(theirs[list(order)], ours, rtol=0, atol=2e-5 * np.abs(ours).max())


def test_the_distance_of_others_formulas() -> None:
    a, b = Statistics.of(features(1)), Statistics.of(features(2))
    shift = float((a.mean - b.mean).square().sum())
    traces = float(a.covariance.trace() + b.covariance.trace())
    product = (a.covariance @ b.covariance).numpy()
    pytorch_fid = shift + traces - 2 * scipy.linalg.sqrtm(product).real.trace()
    torch_fidelity = (
        shift + traces - 2 * np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
    )
    assert frechet_distance(a, b) == pytest.approx(pytorch_fid, rel=1e-10)
    assert frechet_distance(a, b) == pytest.approx(torch_fidelity, rel=1e-10)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_clean_fids_distances_of_our_features() -> None:
    fid = pytest.importorskip("cleanfid.fid")
    a, b = features(1), features(2)
    try:
        theirs = fid.fid_from_feats(a.numpy(), b.numpy())
    except TypeError as error:
        pytest.skip(f"clean-fid does not work with this SciPy: {error}")
    ours = [Features(x, "x", SHA).statistics() for x in (a, b)]
    assert frechet_distance(*ours) == pytest.approx(theirs, rel=1e-10)
    np.random.seed(3)
    found = fid.kernel_distance(a.numpy(), b.numpy(), num_subsets=4, max_subset_size=50)
    np.random.seed(3)  # their subsets: of b first, then of a
    rows = [[np.random.choice(150, 50, replace=False) for _ in range(2)] for _ in range(4)]
    first, second = (torch.tensor(np.stack([pair[side] for pair in rows])) for side in (0, 1))
    best = min(
        abs(kid_of_rows(a, b, *order).mean - found) for order in ((first, second), (second, first))
    )
    assert best < 1e-9


def test_an_npz_is_what_the_adm_suite_reads(tmp_path: Path) -> None:
    """Its reader takes `arr_0` from the zip by hand: stored as it is, header 1.0, in C order."""
    import zipfile

    images = pixels(5, 3)
    save_npz(tmp_path / "x.npz", from_uint8(images), torch.arange(5))
    with zipfile.ZipFile(tmp_path / "x.npz") as archive, archive.open("arr_0.npy") as file:
        assert archive.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        assert (shape, fortran, dtype) == ((5, 40, 32, 3), False, np.uint8)
        data = np.frombuffer(file.read(), dtype).reshape(shape)
    assert (data == images.permute(0, 2, 3, 1).numpy()).all()

"""A diffusers pipeline as a source of images: a function of (seed, i), whatever the chunk."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from genvis.checkpoint import load_tensors, save_tensors
from genvis.config import build
from genvis.evaluation.sources import Making, source_of
from genvis.evaluation.suite import Suite
from genvis.integrations.diffusers_pipeline import Pipeline
from genvis.samplers.generator import SamplerConfig

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny unconditional pipeline with random weights, as diffusers saves it."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("pipeline") / "ddpm"
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(path)
    return path


@pytest.fixture
def source(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "ddpm.yaml"
    path.write_text(f"name: pipeline\npath: {folder}\ncall: {{num_inference_steps: 2}}\n")
    return path


def test_an_image_is_a_function_of_its_number(source: Path) -> None:
    images = source_of(source).open(Making(count=6, seed=3), 6)
    whole, _ = images.read(range(6))
    assert whole.dtype == torch.uint8
    assert whole.shape == (6, 3, 8, 8)
    assert len(whole.flatten(1).unique(dim=0)) == 6
    for rows in (range(2), range(2, 5), range(5, 6)):
        part, _ = images.read(rows)
        near = (part.int() - whole[rows.start : rows.stop].int()).abs() <= 1
        assert near.all()  # rounding may differ with the batch
    other, _ = source_of(source).open(Making(count=6, seed=4), 6).read(range(6))
    assert not torch.equal(whole, other)


def test_a_pipeline_is_evaluated(folder: Path, source: Path, tmp_path: Path) -> None:
    given = {
        "extractor": "digits-cnn-v1",
        "reference": {"name": "dataset", "data": {"name": "digits"}},
        "making": {"count": 20},
        "chunk": 10,
    }
    records, _ = build(Suite, given).report(str(source), folder=tmp_path / "out")
    assert [record.metric[:3] for record in records] == ["FD["]
    assert type(source_of(folder)).__name__ == "Pipeline"  # by its folder alone, too


def test_changed_weights_or_prompts_are_another_set(folder: Path, tmp_path: Path) -> None:
    copy, prompts = tmp_path / "copy", tmp_path / "prompts.txt"
    shutil.copytree(folder, copy)
    prompts.write_text("a cat\na dog\n")

    def identity(**given: Any) -> dict[str, Any]:
        return Pipeline(path=str(copy), **given).open(Making(count=2), 2).identity

    plain, told = identity(), identity(prompts=str(prompts))
    assert identity() == plain
    prompts.write_text("a cat\na cow\n")
    assert identity(prompts=str(prompts)) != told
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    changed = {name: value + 1 for name, value in load_tensors(weights).items()}
    save_tensors(weights, changed, {"format": "pt"})
    assert identity() != plain


def test_nan_is_no_black_image(folder: Path) -> None:
    images = Pipeline(path=str(folder), call={"num_inference_steps": 2}).open(Making(count=2), 2)
    for weight in images.pipeline.unet.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="images hold NaN"):
        images.read(range(2))


def test_a_pipeline_to_compare_with_makes_its_images_once(source: Path, tmp_path: Path) -> None:
    given = {"extractor": "digits-cnn-v1", "measures": [], "making": {"count": 8, "seed": 5}}
    out = tmp_path / "out"
    records, _ = build(Suite, {**given, "chunk": 4}).report(str(source), str(source), out)
    assert (out / "against" / "samples.npz").is_file()
    assert {record.metric: record.value for record in records}["psnr"] == 100
    assert {(record.keys, record.seed) for record in records} == {("0..7 of seed 5", 5)}


def test_what_a_pipeline_cannot_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has its own sampler"):
        Pipeline(path=str(folder)).open(Making(sampler=SamplerConfig()), 4)
    with pytest.raises(ValueError, match="not the folder of a diffusers pipeline"):
        Pipeline(path=str(tmp_path)).open(Making(), 4)
    with pytest.raises(ValueError, match="classes or prompts, not both"):
        Pipeline(path=str(folder), classes=3, prompts="x.txt")
    with pytest.raises(ValueError, match=r"none\.txt: no such file"):
        Pipeline(path=str(folder), prompts="none.txt").open(Making(count=4), 4)

"""What can be evaluated: files, archives and arrays of images, and models that make images.

A source is opened to a numbered set of images of one size, read a few rows at a time, so that no
set is ever in memory as a whole. A plain path names its own kind (`source_of`); what needs more
words (a pipeline's steps, prompts) is a YAML file with `name:` and fields.
Letters: B images, H W their size.
"""

from pathlib import Path
from typing import Annotated, Any, Protocol

from torch import Tensor

from genvis.config import Table, config, read_yaml
from genvis.samplers import SAMPLERS
from genvis.samplers.base import SamplerChoice
from genvis.types import Cond


class Images(Protocol):
    """A numbered set of images of one size. It may also have `said`: the prompts of its images,
    each at least once, or None, so that what cannot be judged is named before any is made.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data that tells this set from others, so that work on it can be resumed."""
        ...

    @property
    def seed(self) -> int | None:
        """The stream that row i is made from; None if the images are there already."""
        ...

    def __len__(self) -> int: ...
    def read(self, rows: range) -> tuple[Tensor, Cond]:
        """Pixels (B, 3, H, W) uint8, and what is known of them: label, prompts, or nothing."""
        ...


@config
class Making:
    """How a model makes the images that are measured: image i is a function of (seed, i)."""

    count: int = 50_000
    seed: int = 0
    # default: as the model's own config suggests
    sampler: Annotated[SamplerChoice, SAMPLERS] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


class Source(Protocol):
    def open(self, making: Making, chunk: int) -> Images: ...


SOURCES = Table(
    "source of images",
    {
        "files": "genvis.evaluation.files:Stored",
        "npz": "genvis.evaluation.files:Arrays",
        "run": "genvis.evaluation.generated:Run",
        "pipeline": "genvis.integrations.diffusers_pipeline:Pipeline",
    },
)


def source_of(given: str | Path) -> Source:
    """The source behind a path: an .npz, .zip or .tar, a folder of samples or images, a run or
    model folder, a folder of a diffusers pipeline, or a .yaml that says which. ValueError for none,
    and for a run that was not brought to its end.
    """
    path = Path(given)
    if path.suffix == ".yaml":
        return SOURCES.build(read_yaml(path))
    kinds = {
        "npz": path.suffix == ".npz",
        "pipeline": (path / "model_index.json").is_file(),
        "run": (path / "model.safetensors").is_file() or (path / "model").is_dir(),
        "files": path.is_dir() or path.suffix in (".zip", ".tar"),
    }
    if not path.exists() and path.suffix != ".tar":  # which may stand for many
        raise ValueError(f"{path}: no such file or folder")
    if (path / "samples.npz").is_file():  # a sample folder
        kinds, path = {"npz": True}, path / "samples.npz"
    elif (path / "run.json").is_file() and not (kinds["run"] or kinds["pipeline"]):
        raise ValueError(
            f"{path}: an unfinished run: it has neither model/, as training leaves it, nor "
            "samples.npz, as sampling does; finish it, or name a folder in it that holds images"
        )
    name = next((name for name, fits in kinds.items() if fits), None)
    if name is None:
        raise ValueError(f"{path}: neither an .npz, .zip, .tar, .yaml nor a folder")
    return SOURCES.build({"name": name, "path": str(path)})

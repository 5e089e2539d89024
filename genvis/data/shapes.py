"""`shapes`: procedural images of colored shapes with captions and ground truth; no file, no
network.

The same (seed, split, index) is the same scene at every size. Besides train and val there is a
split heldout: every scene of it has a composition that train and val never show (`scenes`).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from genvis.config import config
from genvis.data.drawing import render
from genvis.data.drawn import Drawn
from genvis.data.scenes import SPLITS, TYPES, Scene, Split, colored_thing, scene
from genvis.types import Batch, Cond


@config
class ShapesConfig:
    """task text: every type of scene, the label is the type's number. task class: one colored
    shape a scene, nothing held out, 64 labels 8 shape + color. Both have captions.
    """

    size: int = 32
    task: Literal["text", "class"] = "text"
    count: int = 50_000  # training examples
    held_out: int = 2_000  # examples of every other split
    seed: int = 0

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 256:
            raise ValueError(f"size must be in 16..256, got {self.size}")

    def build(self, split: Split) -> "Shapes":
        return Shapes(self, split)


class Shapes:
    def __init__(self, config: ShapesConfig, split: Split) -> None:
        splits = SPLITS if config.task == "text" else SPLITS[:2]
        if split not in splits:
            raise ValueError(f"split of task {config.task} must be in {splits}, got {split!r}")
        self.config, self.split = config, split
        self.composed: dict[int, Scene] = {}
        self.images = Drawn(
            config.count if split == "train" else config.held_out, config.size, self._draw
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        scenes = [self.scene(i) for i in indices]
        labels = torch.tensor([self._label(scene) for scene in scenes])
        prompts = tuple(scene.caption for scene in scenes)
        return Batch(self.images[indices], Cond(label=labels, prompts=prompts))

    def captions(self, indices: Sequence[int]) -> list[tuple[str, ...]]:
        """Every caption of each image, which is one; draws nothing."""
        return [(self.scene(i).caption,) for i in indices]

    def scene(self, index: int) -> Scene:
        """The ground truth of an example."""
        if index not in self.composed:
            compose = scene if self.config.task == "text" else colored_thing
            self.composed[index] = compose(self.config.seed, self.split, index)
        return self.composed[index]

    def _label(self, scene: Scene) -> int:
        if self.config.task == "text":
            return TYPES.index(scene.type)
        return 8 * scene.things[0].shape + scene.things[0].color

    def _draw(self, index: int) -> NDArray[np.uint8]:
        return render(self.scene(index), self.config.size)

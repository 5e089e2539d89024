"""torchvision's datasets: those already on the disk, unless a download is asked for."""

from typing import Any, Literal

from PIL import Image

from genvis.config import config
from genvis.data.pictures import Entry, Pictures
from genvis.data.stores import readable
from genvis.data.view import View, rgb


@config
class TorchvisionConfig:
    """val is the test set (of ImageNet: the validation set)."""

    dataset: Literal["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "ImageNet"]
    root: str
    view: View
    download: bool = False
    allow: int = 0

    def build(self, split: str) -> Pictures:
        if split not in ("train", "val"):
            raise ValueError(f"split must be train or val, got {split!r}")
        examples = Examples(self, split)
        return Pictures(examples, range(len(examples.entries)), self.view, self.allow)


class Examples:
    problems: tuple[str, ...] = ()

    def __init__(self, config: TorchvisionConfig, split: str) -> None:
        from torchvision import datasets

        self.source = f"{config.root}: {config.dataset}"
        kind = getattr(datasets, config.dataset)
        try:
            if config.dataset == "ImageNet":  # has no train, nor a download
                self.data = kind(config.root, split=split)
            else:
                self.data = kind(config.root, train=split == "train", download=config.download)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{self.source}: not found, or damaged, where torchvision looks for it "
                f"({_expected(config)}); set data.download to fetch it: {error}"
            ) from error
        labels: Any = self.data.targets
        self.entries = [Entry(str(i), int(label)) for i, label in enumerate(labels)]

    def open(self, index: int) -> Image.Image:
        with readable():
            return rgb(self.data[index][0])


def _expected(config: TorchvisionConfig) -> str:
    inside = {
        "CIFAR10": "cifar-10-batches-py",
        "CIFAR100": "cifar-100-python",
        "ImageNet": "ILSVRC2012_devkit_t12.tar.gz",
    }
    return f"{config.root}/{inside.get(config.dataset, f'{config.dataset}/raw')}"

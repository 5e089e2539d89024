"""What a trained feature extractor is worth on images that it never saw, as its record says it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from genvis.data.shapes import ShapesConfig
from genvis.evaluation.corruption import Corruption
from genvis.evaluation.retrieval import Retrieval
from genvis.features.classifier import Classifier
from genvis.features.clip import CLIP
from genvis.objectives import OBJECTIVES
from genvis.types import DatasetConfig, Objective


def of_classifier(folder: Path, data: DatasetConfig) -> dict[str, Any]:
    shipped, held_out = Classifier.from_pretrained(folder), data.build("val")
    batch = held_out[range(len(held_out))]
    if batch.cond.label is None:
        raise ValueError("a classifier is measured on images with labels")
    with torch.no_grad():
        right = shipped.log_probs(batch.x).argmax(1).eq(batch.cond.label)
    return {
        "sha256": shipped.sha256,
        "held_out_accuracy": round(right.float().mean().item(), 4),
        "held_out": len(held_out),
    }


def of_clip(folder: Path, data: DatasetConfig) -> dict[str, Any]:
    if not isinstance(data, ShapesConfig):
        raise ValueError("a CLIP is measured on shapes, whose captions have a known ceiling")
    shipped = CLIP.from_folder(folder)
    found = Retrieval(data=data).report(shipped)
    falls = Corruption(data=data).report(shipped)
    return {
        "sha256": shipped.sha256,
        "retrieval": {
            each.split: {
                f"top1_of_{each.among}": round(each.top1, 4),
                "standard_error": round(each.error, 4),
                "ceiling": round(each.ceiling, 4),
                "images": each.images,
            }
            for each in found
        },
        "wrong_attributes": {
            each.split: {
                "100_cos": [round(mean, 2) for mean in each.means],
                "share_not_falling": [round(share, 4) for share in each.missed],
                "images": each.images,
            }
            for each in falls
        },
    }


Measure = Callable[[Path, DatasetConfig], dict[str, Any]]
MEASURES: dict[str, Measure] = {"classification": of_classifier, "contrastive": of_clip}


def measure_of(objective: Objective) -> Measure:
    """How a folder is measured that was trained so. ValueError for what makes no extractor."""
    name = OBJECTIVES.name_of(objective)
    if name not in MEASURES:
        raise ValueError(f"objective must be one of {', '.join(MEASURES)}, got {name}")
    return MEASURES[name]

"""All captions of a dataset: what there is to encode, and what a model must be able to read."""

from collections.abc import Iterator
from typing import Any

from genvis.types import Dataset

ROWS = 1024  # examples whose captions are read at once


def captions_of(data: Dataset) -> Iterator[str]:
    """Every caption of every example. ValueError for data without."""
    for start in range(0, len(data), ROWS):
        rows = range(len(data))[start : start + ROWS]
        if hasattr(data, "captions"):
            said = data.captions(rows)
        else:
            prompts = data[rows].cond.prompts
            said = prompts and [(prompt,) for prompt in prompts]
        if said is None:
            raise ValueError("the data have no captions")
        for captions in said:
            yield from captions


def check_captions(data: Dataset, model: Any) -> None:
    """ValueError for captions that the model's text encoder cannot take whole. Data that say their
    captions only with their images are not asked.
    """
    text = getattr(model, "text", None)
    if text is not None and hasattr(data, "captions"):
        text.check(list(dict.fromkeys(captions_of(data))))

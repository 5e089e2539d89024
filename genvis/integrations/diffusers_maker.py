"""A pipeline's folder as what makes the candidates of a search."""

from pathlib import Path
from typing import Any, Literal

import torch

from genvis.config import config
from genvis.devices import processes
from genvis.integrations.diffusers_models import load_pipeline
from genvis.integrations.diffusers_pipeline import folder_sha256
from genvis.integrations.diffusers_search import Whole, pipeline_sampler
from genvis.search.makers import Maker
from genvis.search.study import Study

DTYPES = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@config
class PipelineSource:
    """negative: the prompt to steer away from where the study gives none, None the pipeline's own;
    dtype: None is float32.
    """

    path: str
    negative: str | None = None
    dtype: Literal["bfloat16", "float16"] | None = None

    def open(self, study: Study) -> Maker:
        about = study.prompts or study.classes
        if about is None:
            raise ValueError(f"{self.path}: a pipeline needs prompts or classes to be given")
        negative = study.negative or self.negative
        if negative and study.prompts is None:
            raise ValueError("a negative prompt needs prompts")
        samplers: list[Any] = [study.sampler or Whole(), study.final]
        for chosen in samplers:
            if chosen is not None and chosen.kind != Whole.kind:
                raise ValueError(
                    f"a sampler for a {chosen.kind} was given, {self.path} is a pipeline"
                )
        pipeline = load_pipeline(self.path, DTYPES[self.dtype]).to(processes().device)
        sampler, cond = pipeline_sampler(pipeline, samplers[0], about, negative)
        final = None if study.final is None else samplers[1].build(pipeline, cond)
        told = {"negative": negative, "dtype": self.dtype}
        known = {"source": folder_sha256(Path(self.path)), "pipeline": told}
        return Maker(sampler, final, cond, known)

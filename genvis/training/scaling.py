"""A trained tokenizer with latents of mean 0 and standard deviation 1 in every channel."""

from collections.abc import Iterator
from typing import Annotated, cast

import torch

from genvis.config import config
from genvis.console import progress
from genvis.data import DATASETS
from genvis.data.latents import check_images
from genvis.tokenizers.model import TokenizerModel, TokenizerModelConfig
from genvis.tokenizers.scaled import Scaled, ScaledConfig, measure
from genvis.types import DatasetConfig, Moments, Tokenizer


@config
class Measuring:
    """The first `count` training examples measure mean and std of every latent channel."""

    data: Annotated[DatasetConfig, DATASETS]
    count: int = 10_000
    batch: int = 64

    def __post_init__(self) -> None:
        if self.count < 2 or self.batch < 1:
            raise ValueError(
                f"count must be at least 2 and batch 1, got {self.count} and {self.batch}"
            )

    def scaled(self, model: TokenizerModel) -> TokenizerModel:
        """The same weights around new numbers. ValueError for a tokenizer without moments, for one
        that is scaled already.
        """
        inner = model.config.tokenizer
        if isinstance(inner, ScaledConfig):
            raise ValueError("this tokenizer is scaled already: scale the run that trained it")
        mean, std = measure(self._latents(model))
        chosen = ScaledConfig(tokenizer=inner, mean=mean, std=std)
        net = Scaled(chosen, cast(Tokenizer, model.net))
        return TokenizerModel(TokenizerModelConfig(tokenizer=chosen), net)

    @torch.no_grad()
    def _latents(self, model: TokenizerModel) -> Iterator[Moments]:
        data, device = self.data.build("train"), next(model.net.parameters()).device
        check_images(data)
        rows = range(min(self.count, len(data)))
        chunks = [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        for chunk in progress(chunks, "measure latents"):
            latents = model.net.encode(data[chunk].x.to(device))  # type: ignore[operator]
            if not isinstance(latents, Moments):
                raise ValueError(f"only Moments can be scaled, not {type(latents).__name__}")
            yield latents

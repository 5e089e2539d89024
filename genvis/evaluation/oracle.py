"""Verifiers that know the metric: which image would improve FD or IS of the set so far the most.

An upper bound on what search can do to a metric, not a method: the number that they improve cannot
judge them. A verifier scores single images, but these scores depend on the images chosen before. So
the set is part of the (frozen) oracle, and `accept` gives the oracle of a set that has grown: a
search asks one oracle about the candidates of a batch of prompts, accepts the winners, and takes
the next batch to the next oracle. The larger the batch, the less its choices know of each other.
Source: Ma et al. 2025, "Inference-time Scaling for Diffusion Models beyond Scaling Denoising
Steps", section 3 (oracle verifiers). Letters: N and B images, K classes, D features.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from torch import Tensor

from genvis.config import config
from genvis.devices import processes
from genvis.evaluation.extraction import ExtractorConfig, HeadedExtractor
from genvis.evaluation.frechet import frechet_from_moments
from genvis.evaluation.reference import load_reference
from genvis.evaluation.statistics import Statistics
from genvis.features import EXTRACTORS
from genvis.types import Cond
from genvis.verifiers.scoring import PerImage


@dataclass(frozen=True)
class Oracle(PerImage):
    """extractor: whose features or logits the metric reads; place: where it is."""

    extractor: HeadedExtractor
    place: torch.device

    @property
    def device(self) -> torch.device:
        return self.place

    @property
    def weights(self) -> str:
        return f"{self.extractor.name}:{self.extractor.sha256[:6]}"

    def heads(self, images: Tensor, name: str) -> Tensor:
        """(B, D) of one head, on the CPU."""
        found = self.extractor.heads(images.clamp(-1, 1).to(self.place))
        if name not in found:
            raise ValueError(f"{self.extractor.name} gives no {name}; there are {', '.join(found)}")
        return found[name].cpu()


@dataclass(frozen=True)
class FrechetOracle(Oracle):
    """Minus the FD of the chosen images and this one to the real ones; the covariance of a single
    image counts as zero. Every score factors (D, D) matrices: D of a few hundred.
    """

    real: Statistics
    chosen: Statistics

    @property
    def name(self) -> str:
        return f"oracle FD[{self.weights}] after {self.chosen.n} images"

    def accept(self, images: Tensor) -> Self:
        """The oracle once these images (N, 3, H, W) belong to the set."""
        return replace(self, chosen=self._grown(self.heads(images, "features")))

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        rows = self.heads(images, "features")
        return torch.tensor([-self._distance(self._grown(row[None])) for row in rows])

    def _grown(self, features: Tensor) -> Statistics:
        return self.chosen + Statistics.of(features, self.extractor.sha256)

    def _distance(self, grown: Statistics) -> float:
        covariance = grown.m2 / max(1, grown.n - 1)
        return frechet_from_moments(grown.mean, covariance, self.real.mean, self.real.covariance)


@dataclass(frozen=True)
class InceptionOracle(Oracle):
    """log IS of the chosen images and this one, in one group; the first is 0 whatever it shows.

    p (K,) and p_log_p: sums over the n chosen of p(y|x) and of its minus entropy.
    """

    n: int
    p: Tensor | None = None
    p_log_p: float = 0.0

    @property
    def name(self) -> str:
        return f"oracle IS[{self.weights}] after {self.n} images"

    def accept(self, images: Tensor) -> Self:
        """The oracle once these images (N, 3, H, W) belong to the set."""
        p, p_log_p = self._read(images)
        total = p.sum(0) if self.p is None else self.p + p.sum(0)
        return replace(
            self, n=self.n + len(p), p=total, p_log_p=self.p_log_p + float(p_log_p.sum())
        )

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        if self.p is None:
            return torch.zeros(len(images))
        p, p_log_p = self._read(images)
        marginal = (self.p + p) / (self.n + 1)  # (B, K)
        mean = (self.p_log_p + p_log_p) / (self.n + 1)
        return mean - torch.special.xlogy(marginal, marginal).sum(1)

    def _read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        log_p = self.heads(images, "logits").double().log_softmax(1)
        return log_p.exp(), (log_p.exp() * log_p).sum(1)


@config
class FrechetOracleConfig:
    """reference: a reference file of the real images, by the same extractor."""

    extractor: Annotated[ExtractorConfig, EXTRACTORS]
    reference: str

    def build(self) -> FrechetOracle:
        device = processes().device
        extractor = self.extractor.build().to(device)
        real = load_reference(self.reference, extractor).statistics("features")
        none = Statistics.of(torch.zeros(0, real.dim), extractor.sha256)
        return FrechetOracle(extractor, device, real, none)


@config
class InceptionOracleConfig:
    extractor: Annotated[ExtractorConfig, EXTRACTORS]

    def build(self) -> InceptionOracle:
        device = processes().device
        return InceptionOracle(self.extractor.build().to(device), device, 0)

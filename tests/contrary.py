"""A judge that wants the opposite of a verifier, as a user adds one from outside genvis."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from genvis.config import config
from genvis.types import Cond, Verifier, VerifierConfig
from genvis.verifiers import VERIFIERS


@config
class ContraryConfig:
    of: Annotated[VerifierConfig, VERIFIERS]

    def build(self) -> "Contrary":
        return Contrary(self.of.build())


@dataclass(frozen=True)
class Contrary:
    of: Verifier

    @property
    def name(self) -> str:
        return f"minus {self.of.name}"

    def __call__(self, images: Tensor, cond: Cond) -> Tensor:
        return -self.of(images, cond)

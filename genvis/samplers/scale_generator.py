"""A next-scale network with the tokenizer of its token pyramids: what its training leaves behind
and sampling, search and evaluation start from.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from genvis.backbones import SCALE_BACKBONES
from genvis.config import config
from genvis.samplers import CHANGES
from genvis.samplers.base import BaseGenerator, Change, apply, told
from genvis.samplers.next_scale import NextScaleConfig
from genvis.text import TEXTS
from genvis.text.prompted import PromptedScales
from genvis.tokenizers import TOKENIZERS
from genvis.types import ScaleBackboneConfig, ScaleTokenizer, TextEncoderConfig, TokenizerConfig

PLAIN = NextScaleConfig()


@config
class ScaleGeneratorConfig:
    """The tokenizer is one of token pyramids: `{name: pretrained, path: ...}` for a trained one."""

    backbone: Annotated[ScaleBackboneConfig, SCALE_BACKBONES]
    tokenizer: Annotated[TokenizerConfig, TOKENIZERS]
    text: Annotated[TextEncoderConfig, TEXTS] | None = None  # what encodes prompts
    sampler: NextScaleConfig = PLAIN
    changes: tuple[Annotated[Change, CHANGES], ...] = ()

    def build(self) -> "ScaleGenerator":
        """With fresh weights; the changes are applied to them, so that changed weights can be
        loaded. ValueError unless backbone and tokenizer are for the same pyramids.
        """
        tokenizer = self.tokenizer.build()
        check_agreement(self.backbone, tokenizer)
        self.sampler.decoding.check(len(self.backbone.scales))
        net = told(self.text, self.backbone.build(), PromptedScales, self.backbone)
        return ScaleGenerator(self, apply(self.changes, net), tokenizer)


@dataclass(frozen=True)
class ScaleGenerator(BaseGenerator):
    kind: ClassVar[str] = "scale_generator"
    config: ScaleGeneratorConfig
    tokenizer: ScaleTokenizer


def check_agreement(backbone: ScaleBackboneConfig, tokenizer: Any) -> None:
    """ValueError names where a network and a tokenizer are for other pyramids."""
    if not hasattr(tokenizer, "accumulate"):
        name = type(tokenizer).__name__
        raise ValueError(f"tokenizer must be one of token pyramids, such as VAR's, got {name}")
    width = tokenizer.blank(1).shape[1]
    found = {"scales": tokenizer.scales, "codes": tokenizer.num_codes, "code_width": width}
    for name, value in found.items():
        if getattr(backbone, name) != value:
            raise ValueError(
                f"{name}: the backbone is for {getattr(backbone, name)}, the tokenizer for {value}"
            )

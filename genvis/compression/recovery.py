"""What training through quantization leaves behind, made what it was trained to be."""

from dataclasses import replace

from genvis.checkpoint import load_state
from genvis.quant.aware import QuantizeAware, packed_state
from genvis.samplers.base import BaseGenerator, apply


def packed(generator: BaseGenerator) -> BaseGenerator:
    """The generator with packed weights in the place of those that were trained: the same function,
    in the bytes of its formats. ValueError if it was not trained through quantization.
    """
    before = generator.config.changes
    changes = tuple(
        change.plan if isinstance(change, QuantizeAware) else change for change in before
    )
    if changes == before:
        raise ValueError("this generator was not trained with the change quantize_aware")
    config = replace(generator.config, changes=changes)
    backbone = apply(changes, config.backbone.build())
    load_state(backbone, packed_state(generator.backbone), "the trained network")
    made = generator.having(backbone.to(generator.device).requires_grad_(False))
    return replace(made, config=config)

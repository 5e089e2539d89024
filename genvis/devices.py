"""Which processes and devices do the work: accelerate's choice, with two exceptions."""

import torch
from accelerate import PartialState


def cpu_only() -> bool:
    """True without an accelerator, where accelerate would take each of several processes for the
    only one; and on Apple's GPU, which has no float64: keys, clocks and statistics need it.
    """
    return torch.backends.mps.is_available() or not torch.accelerator.is_available()


def processes() -> PartialState:
    """This process among those that were launched, and its device."""
    return PartialState(cpu=cpu_only())

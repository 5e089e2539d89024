"""Which processes and devices do the work: accelerate's choice, with one exception."""

import torch
from accelerate import PartialState


def cpu_only() -> bool:
    """True on Apple's GPU, which has no float64: keys, clocks and statistics need it."""
    return torch.backends.mps.is_available()


def processes() -> PartialState:
    """This process among those that accelerate launched, and its device."""
    return PartialState(cpu=cpu_only())

"""How what passes a layer is quantized: by the range of the token itself, or by a calibrated one.

Tokens are rows: of a sequence its tokens, of a map its pixels with all their channels.
"""

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.quant import FORMATS, OBSERVERS
from genvis.quant.format import Format, Params
from genvis.quant.observers import MinMax, Observer
from genvis.quant.stored import Stored


class Activation(Protocol):
    """A choice of format and range for the input of a layer."""

    @property
    def format(self) -> Format: ...
    def build(self) -> nn.Module:
        """From tokens (..., I) to the same as quantized."""
        ...


@config
class Dynamic:
    """Every token, or group in it, by its own range: needs no data, and no token sees another."""

    format: Annotated[Format, FORMATS]

    def __post_init__(self) -> None:
        if self.format.spans_rows:
            raise ValueError(
                "format must have scales of its own for every token, or an image would depend on "
                f"the others of its batch; got {self.format}"
            )

    def build(self) -> nn.Module:
        return DynamicInput(self)


@config
class Static:
    """All tokens by one range, which an observer finds while the network runs in `observing`."""

    format: Annotated[Format, FORMATS]
    observer: Annotated[Observer[Any], OBSERVERS] = MinMax()

    def __post_init__(self) -> None:
        if self.format.group != "tensor":
            raise ValueError(f"format.group must be tensor for a static range, got {self.format}")

    def build(self) -> nn.Module:
        return StaticInput(self)


class DynamicInput(nn.Module):
    def __init__(self, config: Dynamic) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to the same as quantized."""
        return self.config.format.fake(x.reshape(-1, x.shape[-1])).reshape(x.shape)

    def encode(self, rows: Tensor) -> tuple[Tensor, Params]:
        """Codes (M, I), int16, of tokens (M, I), and their parameters (M, K)."""
        return self.config.format.encode(rows)


class StaticInput(Stored):
    """`range`: low and high, float32; NaN until calibrated."""

    range: Tensor

    def __init__(self, config: Static) -> None:
        super().__init__()
        self.config = config
        self.keep("range", torch.full((2,), torch.nan))
        self._watching, self._seen, self._ready = False, None, False

    @property
    def calibrated(self) -> bool:
        return not bool(self.range.isnan().any())

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) to the same as quantized; unchanged while observing."""
        if self._watching:
            return self._watch(x)
        return self.config.format.fake(x.reshape(1, -1), self._params()).reshape(x.shape)

    def encode(self, rows: Tensor) -> tuple[Tensor, Params]:
        """Codes (M, I), int16, of tokens (M, I), and the parameters (1, 1) of all."""
        codes, params = self.config.format.encode(rows.reshape(1, -1), self._params())
        return codes.reshape(rows.shape), params

    def _params(self) -> Params:
        self._ready = self._ready or self.calibrated  # asks the device once
        if not self._ready:
            raise ValueError("a static input has no range yet: run the network in `observing`")
        low, high = self.range.reshape(2, 1, 1)
        return self.config.format.fit(low, high)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._ready = self.calibrated  # so that a compiled forward never asks

    def watch(self) -> None:
        self._watching, self._seen = True, None

    def found(self) -> Tensor:
        """The range (2,) of what was seen. ValueError if nothing was."""
        observer = self.config.observer
        if self._seen is None:
            missing = "no gradient came back" if observer.weighs else "nothing passed"
            raise ValueError(f"{missing} while observing")
        return torch.stack(observer.range(self._seen, self.config.format)).to(self.range)

    def rest(self) -> None:
        self._watching, self._seen = False, None

    def _watch(self, x: Tensor) -> Tensor:
        if not self.config.observer.weighs:
            self._see(x, None)
            return x
        if not torch.is_grad_enabled():
            raise ValueError("a Hessian-weighted range needs gradients, which are switched off")
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        x.register_hook(lambda grad: self._see(x, grad.square()))
        return x

    def _see(self, x: Tensor, importance: Tensor | None) -> None:
        batch, observer = self.config.observer.see(x, importance), self.config.observer
        self._seen = batch if self._seen is None else observer.join(self._seen, batch)


def uncalibrated(net: nn.Module) -> list[str]:
    """The names of the static inputs and layers whose numbers have not been found on data yet."""
    return [name for name, m in net.named_modules() if not getattr(m, "calibrated", True)]


@contextlib.contextmanager
def observing(net: nn.Module) -> Iterator[None]:
    """Inside, static inputs pass unquantized and are observed; afterwards each has its range.

    Observers that weigh by gradients see what a `backward` of the loss inside the block reaches.
    ValueError if one saw nothing; if the block fails, all ranges stay as they were.
    """
    inputs = {name: m for name, m in net.named_modules() if isinstance(m, StaticInput)}
    try:
        for module in inputs.values():
            module.watch()
        yield
        found = {}
        for name, module in inputs.items():
            try:
                found[name] = module.found()
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        for name, module in inputs.items():
            module.range, module._ready = found[name], True
    finally:
        for module in inputs.values():
            module.rest()

"""Running a quantized net on low-bit kernels: which back-end takes which layer, what it changes.

What the plan left behind computes by fake quantization, which defines every format. An execution
hands each of its products to the first back-end on a list that has a kernel for it on the device
where the net is. That is known, and said, before anything runs; a layer that none takes is an error
unless the list ends with `fake`, which takes all.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor, nn

from genvis.config import Table, build, config
from genvis.console import note
from genvis.quant import ACTIVATIONS, BACKENDS, FORMATS
from genvis.quant.backends import Backend, Int8
from genvis.quant.format import Format
from genvis.quant.products import Product, products, with_layers
from genvis.quant.report import sqnr

G = TypeVar("G", bound=Any)


@dataclass(frozen=True)
class Placement:
    """One layer: the formats that the plan asks for and the numbers that are multiplied.

    lacks: why back-ends earlier on the list do not take it, by name.
    """

    name: str
    weight: str
    act: str | None
    backend: str
    runs: str
    lacks: dict[str, str]


@config
class Execution:
    """The back-ends that may take layers; the first that has a kernel for a layer takes it."""

    backends: tuple[Annotated[Backend, BACKENDS], ...] = (Int8(),)

    def __post_init__(self) -> None:
        names = [BACKENDS.name_of(backend) for backend in self.backends]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"backends must name at least one, each once, got {names}")

    def place(self, net: nn.Module) -> tuple[Placement, ...]:
        """Who would run each layer of a quantized net, on the device where it is now.

        ValueError names the layers that no back-end takes, and why.
        """
        return tuple(placement for placement, _ in self._chosen(net).values())

    def apply(self, net: nn.Module) -> nn.Module:
        """A copy of the net that runs so; for inference, where the net is now. ValueError as in
        `place`.
        """
        known = products(net)
        layers = {
            name: backend.build(known[name]) for name, (_, backend) in self._chosen(net).items()
        }
        return with_layers(net, layers)

    def _chosen(self, net: nn.Module) -> dict[str, tuple[Placement, Backend]]:
        found = products(net)
        if not found:
            raise ValueError("net has no packed weights: apply a plan to it first")
        chosen, homeless = {}, {}
        for name, product in found.items():
            lacks: dict[str, str] = {}
            for backend in self.backends:
                title = BACKENDS.name_of(backend)
                reason = backend.lacks(product)
                if reason is None:
                    placement = Placement(
                        name, *asked(product), title, backend.runs(product), lacks
                    )
                    chosen[name] = placement, backend
                    break
                lacks = {**lacks, title: reason}
            else:
                homeless[name] = lacks
        if homeless:
            raise ValueError(_homeless(homeless, len(found)))
        return chosen


def executed(generator: G, backends: Sequence[str]) -> G:
    """A generator whose backbone runs on these back-ends, which is said on stderr first."""
    execution = build(Execution, {"backends": list(backends)})
    for line in lines(execution.place(generator.backbone)):
        note(line)
    made: G = generator.having(execution.apply(generator.backbone))
    return made


def asked(product: Product) -> tuple[str, str | None]:
    """The formats of weight and inputs in a few words."""
    act = None if product.act is None else title(product.act.config, ACTIVATIONS)
    return title(product.weight.format, FORMATS), act


def title(value: Any, table: Table) -> str:
    """The name of a choice in a table, and where it differs from the defaults."""
    words = [table.name_of(value)]
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        if isinstance(own, Format):
            words.append(title(own, FORMATS))
        elif own != field.default:
            words.append(f"{field.name}={own}")
    return " ".join(words)


def lines(placements: Sequence[Placement]) -> list[str]:
    """For every back-end how many layers it runs, and what kept these from those before it."""
    found: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for each in placements:
        reasons = tuple(f"{name} takes {lack}" for name, lack in each.lacks.items())
        found.setdefault((each.backend, each.runs, reasons), []).append(each.name)
    return [
        f"{backend} runs {_some(names)} of {len(placements)} layers in {runs}"
        + (f": {'; '.join(reasons)}" if reasons else "")
        for (backend, runs, reasons), names in found.items()
    ]


def held_bytes(net: nn.Module, placements: Sequence[Placement]) -> dict[str, int]:
    """The bytes of the tensors that each layer holds in memory, its bias among them."""
    return {each.name: tensor_bytes(net.get_submodule(each.name)) for each in placements}


def tensor_bytes(module: nn.Module) -> int:
    """The bytes of all tensors that it holds in memory."""
    return sum(_stored(tensor) for tensor in (*module.parameters(), *module.buffers()))


@dataclass(frozen=True)
class Difference:
    """Between outputs for the same inputs: the largest one, beside the largest output."""

    largest: float
    scale: float
    sqnr: float  # dB; infinite if there is none

    @classmethod
    def of(cls, reference: Tensor, other: Tensor) -> "Difference":
        gap = (reference.double() - other.double()).abs().max()
        return cls(float(gap), float(reference.abs().max()), sqnr(reference, other))


@torch.no_grad()
def differences(net: nn.Module, executed: nn.Module, *inputs: Any) -> dict[str, Difference]:
    """What real kernels change: of every layer of the quantized net, given what it is given there,
    and under "" of the whole net. Neither is written into.
    """
    found: dict[str, Difference] = {}

    def compare(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            found[name] = Difference.of(out, executed.get_submodule(name)(*given))

        return hook

    hooks = [net.get_submodule(name).register_forward_hook(compare(name)) for name in products(net)]
    try:
        whole = net(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {**found, "": Difference.of(whole, executed(*inputs))}


def _homeless(layers: dict[str, dict[str, str]], total: int) -> str:
    """Names and reasons of the layers that nobody takes, in one line."""
    reasons = dict.fromkeys(
        f"{b} takes {lack}" for lacks in layers.values() for b, lack in lacks.items()
    )
    return (
        f"no back-end runs {_some(list(layers))} of {total} layers: {'; '.join(reasons)}; "
        "let `fake` end the list of back-ends to run them in full precision"
    )


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} ({', '.join(names[:3])}{more})"


def _stored(tensor: Tensor) -> int:
    """Of a tensor that is made of others, these."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    return sum(_stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])

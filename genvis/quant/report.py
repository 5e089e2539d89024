"""What quantization did to a network: bytes before and after, and how far its weights moved."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genvis.quant.activations import Activation
from genvis.quant.format import Format
from genvis.quant.modules import PACKED, quantized_layers


@dataclass(frozen=True)
class LayerSummary:
    """One quantized layer. Bytes are those of all its tensors but the bias: of its weight, and of
    what a rule adds to it. Transformations are undone before weights are compared.
    """

    name: str
    format: Format | None  # of the weight; None: full precision
    act: Activation | None
    weights: int
    changed: int  # weights whose dequantized value is not the original one
    bytes_before: int
    bytes_after: int
    sqnr: float  # dB: 10 log10(sum w^2 / sum (w - w_hat)^2); infinite if nothing changed


@dataclass(frozen=True)
class Summary:
    """A quantized net beside the original. Bytes are those of all tensors of the state dict."""

    layers: tuple[LayerSummary, ...]
    bytes_before: int
    bytes_after: int

    @property
    def weights(self) -> int:
        """How many weights are packed."""
        return sum(layer.weights for layer in self.layers)

    @property
    def share_changed(self) -> float:
        """The fraction of the packed weights whose value is not the original one, in [0, 1]."""
        return sum(layer.changed for layer in self.layers) / max(1, self.weights)


def state_bytes(net: nn.Module) -> int:
    """The bytes of the tensors in the state dict; a tensor under two names counts twice."""
    return sum(tensor.nbytes for tensor in net.state_dict().values())


def sqnr(weight: Tensor, quantized: Tensor) -> float:
    """Signal to noise in dB, 10 log10(sum w^2 / sum (w - w_hat)^2); infinite if equal."""
    w, w_hat = weight.detach().double(), quantized.detach().double()
    noise = float((w - w_hat).square().sum())
    if noise == 0:
        return math.inf
    signal = float(w.square().sum())
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def summary(original: nn.Module, quantized: nn.Module) -> Summary:
    """What became of `original` in its quantized copy. ValueError if they do not fit."""
    before = {name: module for name, module in original.named_modules() if type(module) in PACKED}
    layers = []
    for name, layer in quantized_layers(quantized).items():
        weight, w_hat = getattr(before.get(name), "weight", None), layer.weight
        if not isinstance(weight, Tensor) or weight.shape != w_hat.shape:
            raise ValueError(
                f"original has no layer {name!r} with a weight of shape {tuple(w_hat.shape)}"
            )
        layers.append(
            LayerSummary(
                name=name,
                format=layer.format,
                act=layer.activation,
                weights=weight.numel(),
                changed=int(torch.count_nonzero(weight.detach() != w_hat)),
                bytes_before=weight.nbytes,
                bytes_after=_bytes_but_bias(layer),
                sqnr=sqnr(weight, w_hat),
            )
        )
    return Summary(tuple(layers), state_bytes(original), state_bytes(quantized))


def _bytes_but_bias(layer: nn.Module) -> int:
    state = layer.state_dict()
    return sum(t.nbytes for name, t in state.items() if name.rpartition(".")[2] != "bias")

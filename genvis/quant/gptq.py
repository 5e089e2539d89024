"""Rounding that makes up for itself: what rounding a weight changes is taken back by the weights of
its row that are still to be rounded.

    H = 2 X^T X + damping mean(diag H) 1,   H^-1 = U^T U
    for column j:  e = (w_j - q_j) / U_jj,   w_k -= e U_jk  for k > j

Source: Frantar et al. 2023, "GPTQ", with the scales of the weight as it was before.
Letters: O outputs, I inputs (of a convolution: those under its kernel), N tokens X (N, I), U upper
triangular.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from genvis.config import config
from genvis.quant.activations import Activation
from genvis.quant.blocks import ranges, split
from genvis.quant.format import Format, Params
from genvis.quant.transform import Layer, Seen, padded, tokens, ungrouped

WIDTH = 128  # columns whose errors reach the rest of the matrix in one product


@config
class GPTQ:
    damping: float = 0.01
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.damping <= 0:
            raise ValueError(f"damping must be positive, got {self.damping}")

    def pack(
        self, layer: Layer, format: Format, act: Activation | None, seen: Seen | None
    ) -> tuple[Layer, Mapping[str, Tensor]]:
        ungrouped(layer, "gptq")
        weight = layer.weight.detach()
        if seen is None or not weight.isfinite().all():
            return layer, format.pack(weight)
        params = format.fit(*ranges(split(weight.float(), format.group)))
        codes = rounded(weight.flatten(1), self._factor(under_kernel(layer, seen)), format, params)
        return layer, format.parts(codes.reshape(weight.shape), params)

    def _factor(self, x: Tensor) -> Tensor:
        """U (I, I), float64."""
        hessian = 2 * x.double().T @ x.double()
        diagonal = hessian.diagonal()
        diagonal += self.damping * diagonal.mean() + torch.finfo(torch.float32).tiny
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        return torch.linalg.cholesky(inverse, upper=True)


def rounded(weight: Tensor, u: Tensor, format: Format, params: Params) -> Tensor:
    """Codes (O, I), int16, of a weight (O, I)."""
    w, codes = weight.double().clone(), torch.empty_like(weight, dtype=torch.int16)
    step = format.step(params)  # (O, K) or (1, 1)
    share = w.shape[1] // step.shape[1]  # columns of a block
    for start in range(0, w.shape[1], WIDTH):
        columns = range(start, min(start + WIDTH, w.shape[1]))
        errors = w.new_empty(len(w), len(columns))
        for j in columns:
            block = slice(j // share, j // share + 1)
            own = {k: p[:, block] if p.shape[1] > 1 else p for k, p in params.items()}
            v = format.in_steps(w[:, j].float()[:, None, None], step[:, block, None])
            code = format.round(v, own)
            q = (format.value(code, own)[..., 0] * step[:, block])[:, 0]
            codes[:, j] = code.flatten().to(torch.int16)
            errors[:, j - start] = (w[:, j] - q) / u[j, j]
            rest = slice(j + 1, columns.stop)
            w[:, rest] -= errors[:, j - start, None] * u[j, rest]
        w[:, columns.stop :] -= errors @ u[columns.start : columns.stop, columns.stop :]
    return codes


def under_kernel(layer: Layer, seen: Seen) -> Tensor:
    """Every row (N, I) that the flat weight (O, I) is multiplied with."""
    if isinstance(layer, nn.Linear):
        return tokens(layer, seen)
    patches = [
        functional.unfold(
            padded(x.float(), layer), layer.kernel_size, layer.dilation, stride=layer.stride
        )
        for x in seen
    ]
    return torch.cat([patch.mT.flatten(0, 1) for patch in patches])

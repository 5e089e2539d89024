"""What happens beside training: a validation loss, activations by layer, and pictures."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.images import save_grid
from genvis.random import HashKeys
from genvis.samplers import SAMPLERS
from genvis.samplers.base import SamplerChoice
from genvis.samplers.generate import generate, in_turn
from genvis.types import Dataset, LossFunction, to

BINS = 8  # of the noise level, in the validation loss


@dataclass(frozen=True)
class Run:
    """What a callback sees. `model.net` is the raw network, `ema` its average."""

    model: Any
    ema: nn.Module
    loss: LossFunction
    validation: Dataset
    folder: Path
    step: int
    steps: int
    log: Callable[[int, dict[str, float]], None] = lambda step, values: None

    @property
    def averaged(self) -> Any:
        """The model with its averaged weights."""
        return replace(self.model, net=self.ema)

    def due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.steps


class Callback(Protocol):
    """Called by the main process after every so many steps, and after the last. It may also have
    check(model), called before the first: ValueError where it has no use for that model.
    """

    @property
    def every(self) -> int: ...
    def __call__(self, run: Run) -> None: ...


@config
class Validation:
    """The loss of raw and averaged weights on fixed held-out examples with fixed noise at evenly
    spread levels.

    The same (x0, level, noise) every time, so a difference between two steps is a difference
    between weights.
    """

    every: int = 500
    count: int = 512  # examples, the held-out ones in turn

    def __post_init__(self) -> None:
        if self.every < 1 or self.count < 2 * BINS:
            raise ValueError(f"every must be at least 1 and count at least {2 * BINS}")

    def __call__(self, run: Run) -> None:
        averaged = self._measure(run, run.ema, "val_ema")
        run.log(run.step, {**averaged, **self._measure(run, run.model.net, "val")})

    @torch.no_grad()
    def _measure(self, run: Run, net: nn.Module, name: str) -> dict[str, float]:
        device = next(net.parameters()).device
        batch = to(run.validation[[i % len(run.validation) for i in range(self.count)]], device)
        keys = HashKeys.of(0, range(self.count), device).fold("validation")
        level = (
            torch.arange(self.count, dtype=torch.float64, device=device) * 0.618033988749895 + 0.5
        ) % 1
        training = net.training
        net.eval()
        loss = run.loss(net, batch, keys, level)
        net.train(training)
        values = {f"{name}_{key}": value.mean().item() for key, value in loss.logs.items()}
        values[f"{name}_loss"] = loss.per_sample.mean().item()
        if loss.level is not None:
            bins = (loss.level * BINS).long()
            for k in range(BINS):
                values[f"{name}_loss_level_{k}"] = loss.per_sample[bins == k].mean().item()
        return values


@config
class Activations:
    """Root mean squares of what chosen modules put out and of the loss's gradient there, on fixed
    held-out examples, in evaluation mode: `feature_NAME` and `gradient_NAME`.
    """

    match: str  # a regular expression on whole module names, such as blocks[.]\\d+
    every: int = 50
    count: int = 64  # examples

    def __post_init__(self) -> None:
        if min(self.every, self.count) < 1:
            raise ValueError("every and count must be at least 1")

    def __call__(self, run: Run) -> None:
        net = run.model.net
        chosen = {n: m for n, m in net.named_modules() if re.fullmatch(self.match, n)}
        if not chosen:
            raise ValueError(f"match: no module of {type(net).__name__} is named {self.match!r}")
        device = next(net.parameters()).device
        batch = to(run.validation[[i % len(run.validation) for i in range(self.count)]], device)
        keys = HashKeys.of(0, range(self.count), device).fold("activations")
        outputs: dict[str, Tensor] = {}
        handles = [
            module.register_forward_hook(lambda *call, name=name: outputs.update({name: call[2]}))
            for name, module in chosen.items()
        ]
        training = net.training
        net.eval()
        try:
            loss = run.loss(net, batch, keys).per_sample.mean()
            gradients = torch.autograd.grad(  # leaves .grad alone
                loss, list(outputs.values()), materialize_grads=True
            )
        finally:
            net.train(training)
            for handle in handles:
                handle.remove()
        values: dict[str, float] = {}
        for kind, tensors in (("feature", outputs.values()), ("gradient", gradients)):
            sizes = torch.stack([x.detach().square().mean().sqrt() for x in tensors]).tolist()
            values |= {f"{kind}_{n}": size for n, size in zip(outputs, sizes, strict=True)}
        run.log(run.step, values)


@config
class SampleGrid:
    """A picture of the averaged weights' samples, the same keys every time:
    `samples/step_0000500.png`.
    """

    every: int = 500
    rows: int = 4
    prompts: tuple[str, ...] | None = None  # one a column; default: the first classes, if any
    # default: the generator's own
    sampler: Annotated[SamplerChoice, SAMPLERS] | None = None

    def __post_init__(self) -> None:
        if min(self.every, self.rows) < 1:
            raise ValueError("every and rows must be at least 1")

    def check(self, model: Any) -> None:
        """ValueError for prompts that the model does not take."""
        if self.prompts is not None:
            model.things(prompts=self.prompts)

    def __call__(self, run: Run) -> None:
        model = run.averaged
        shown = len(self.prompts or ()) or min(model.num_classes, 10)
        classes = range(shown) if self.prompts is None and shown else None
        columns = shown or 10
        rows = range(self.rows * columns)
        cond = in_turn(model.things(classes, self.prompts), rows)
        images = generate(model.sampler(self.sampler), cond, HashKeys.of(0, rows))
        folder = run.folder / "samples"
        folder.mkdir(exist_ok=True)
        save_grid(folder / f"step_{run.step:07d}.png", images, columns)

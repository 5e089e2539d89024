"""The values that pass between the floors and the protocols that meet there.

Letters: B rows (images, prompts, particles), C channels, H W map size, L sequence length, D width,
N images. Images are (B, 3, H, W) in [-1, 1]; latents (B, C, h, w) are unit-scaled; times and
statistics are float32 or float64.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from genvis.random import Keys

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class Cond:
    """What a batch is conditioned on. Every leaf is batch-first; what is None was not given.

    label (B,) int64; text (B, L, D) with text_mask (B, L) bool (True = a real token) and pooled
    (B, D); prompts: B strings, which verifiers and records need, and which a text encoder turns
    into the three (`genvis/text`); an empty one is no prompt, and its row counts as dropped.
    negative: the condition to steer away from; known: (values, mask) to keep, for in-painting, of
    token pyramids (B, L) int64 and (B, L) bool with the scales one after the other; drop (B,) bool:
    rows whose condition the network must ignore. It then has a "no text" of its own, or takes that
    of `negative`, which is the null prompt's where a text encoder made the text.
    """

    label: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    pooled: Tensor | None = None
    prompts: tuple[str, ...] | None = None
    negative: "Cond | None" = None
    known: tuple[Tensor, Tensor] | None = None
    drop: Tensor | None = None

    def __len__(self) -> int:
        given = (self.label, self.text, self.pooled, self.prompts, self.drop)
        return next((len(leaf) for leaf in given if leaf is not None), 0)

    def dropped(self) -> "Cond":
        """The twin without a condition: the negative one where given, else every row dropped."""
        if self.negative is not None:
            return self.negative
        leaves = (self.label, self.text, self.pooled, self.drop)
        device = next((leaf.device for leaf in leaves if leaf is not None), None)
        return replace(self, drop=torch.ones(len(self), dtype=torch.bool, device=device))


@dataclass(frozen=True)
class Moments:
    """What an encoder knows of a latent: mean and standard deviation (None where it is exact)."""

    mean: Tensor
    std: Tensor | None = None

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, keys: Keys) -> Tensor:
        if self.std is None:
            return self.mean
        return self.mean + self.std * keys.normal(self.mean.shape[1:], self.mean.device)


@dataclass(frozen=True)
class Pyramid:
    """An image as token maps from coarse to fine: one (B, n_k) int64 a scale, rows first, and what
    a network that knows the scales below each sees of them, `inputs` (B, L - n_0, C).

    L is the sum of all n_k; the coarsest scale has no input.
    """

    tokens: tuple[Tensor, ...]
    inputs: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """What a tokenizer in training makes of images: images (B, 3, H, W), not clamped.

    penalty (B,) is the bottleneck's own loss (KL or codebook); features (B, ...) are what its
    `learn` is taught from once the step's gradients have been applied, if it has one.
    """

    images: Tensor
    penalty: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Training examples: x is images (B, 3, H, W), or what is cached of them: `Moments`, or the
    tokens (B, n_k) of every scale; same rows.
    """

    x: Any
    cond: Cond


@dataclass(frozen=True)
class Estimate:
    """A network's view of x_t: the clean image, the noise in it, a raw learned variance if any."""

    x0: Tensor
    eps: Tensor
    var: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """per_sample (B,) before any reduction; level (B,) in [0, 1]: the row's share of the path;
    features (B, ...): what the network's own rules learn from after the step, if it has any.
    """

    per_sample: Tensor
    level: Tensor | None = None
    logs: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None


@dataclass(frozen=True)
class Cost:
    """What a call spends on each row. A guided evaluation counts as two.

    tokens are what next-scale models predict, both halves of a guided one; gradients are
    verifications that were differentiated back to the state.
    """

    evaluations: int = 0
    tokens: int = 0
    flops: int = 0
    decodes: int = 0
    verifications: int = 0
    gradients: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return self + other * -1

    def __mul__(self, rows: int) -> "Cost":
        return Cost(**{f.name: getattr(self, f.name) * rows for f in fields(self)})


def take(value: T, rows: Tensor | slice) -> T:
    """The given rows of a nest of batch-first tensors, dataclasses, tuples, dicts; scalars pass."""
    return _map(value, lambda leaf: leaf[rows], lambda words: tuple(_pick(words, rows)))


def repeat(value: T, n: int) -> T:
    """Every row n times, neighbours together: (B, ...) -> (B n, ...)."""
    return _map(
        value,
        lambda leaf: leaf.repeat_interleave(n, 0),
        lambda words: tuple(w for w in words for _ in range(n)),
    )


def join(values: Sequence[T]) -> T:
    """The rows of several nests of one kind, one after the other; scalars are the first one's."""
    joined: T = _join(values)
    return joined


def _join(values: Sequence[Any]) -> Any:
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Tensor):
        return first if first.ndim == 0 else torch.cat(list(values))
    if isinstance(first, tuple):
        if first and all(isinstance(item, str) for item in first):
            return tuple(word for words in values for word in words)
        return tuple(_join(items) for items in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: _join([value[key] for value in values]) for key in first}
    if is_dataclass(first) and not isinstance(first, type):
        leaves = {f.name: _join([getattr(v, f.name) for v in values]) for f in fields(first)}
        return replace(first, **leaves)
    return first


def to(value: T, device: torch.device | str) -> T:
    """The same nest with every tensor on `device`; 0-d tensors (clocks) stay where they are."""
    return _map(value, lambda leaf: leaf.to(device), lambda words: words)


def detach(value: T) -> T:
    """The same nest without the graph that made it."""
    return _map(value, lambda leaf: leaf.detach(), lambda words: words)


def _map(value: Any, tensor: Any, words: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.ndim == 0 else tensor(value)
    if isinstance(value, tuple):
        if value and all(isinstance(item, str) for item in value):
            return words(value)
        return tuple(_map(item, tensor, words) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, tensor, words) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _map(getattr(value, f.name), tensor, words) for f in fields(value)}
        )
    return value


def _pick(words: Sequence[str], rows: Tensor | slice) -> Sequence[str]:
    if isinstance(rows, slice):
        return words[rows]
    chosen = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
    return [words[i] for i in chosen.tolist()]


class Backbone(Protocol):
    """A network from noisy maps to maps. It knows nothing of loss, guidance or sampling."""

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor: ...


class BackboneConfig(Protocol):
    """What `build` makes, and the latent shape (C, h, w) it is made for.

    A config may also have text_width, the width D of the cond.text that its network takes, 0 if it
    takes none, and text_tokens, how many at most. So may a `ScaleBackboneConfig`.
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def num_classes(self) -> int: ...
    def build(self) -> nn.Module: ...


class TextEncoder(Protocol):
    """From prompts to features (B, L, D) of a fixed length L, so that no row depends on another.

    The empty prompt (blanks alone) is the null prompt: what a network sees that is told nothing.
    An encoder that is trained with the generator is an `nn.Module`, whose weights are the
    generator's; a frozen one is not, and has `identity`, which tells its features from others'.
    """

    @property
    def constant_tokens(self) -> int:
        """How many tokens, from the first, have features that never depend on the prompt, so that
        quantization may keep them apart: the first of a causal encoder, none of any other.
        """
        ...

    def check(self, prompts: Sequence[str]) -> None:
        """ValueError for prompts that cannot be encoded whole, naming the words and the limit."""
        ...

    def __call__(self, prompts: Sequence[str]) -> Cond:
        """prompts with their text (B, L, D), text_mask (B, L) and, if there is one, pooled (B, D).

        ValueError as `check`.
        """
        ...


class TextEncoderConfig(Protocol):
    """What `build` makes, and the features it gives: `length` L tokens, `width` D."""

    @property
    def width(self) -> int: ...
    @property
    def length(self) -> int: ...
    def build(self) -> TextEncoder: ...


class ScaleBackbone(Protocol):
    """A network from what is known below every scale to logits of its tokens (VAR, M-VAR).

    x holds the inputs (C wide) of scales 1, 2, ...; scale 0 comes from the condition alone.
    """

    def __call__(self, x: Tensor, cond: Cond) -> Tensor:
        """Teacher forced: x (B, L_k - n_0, C) of the first k scales -> logits (B, L_k, V)."""
        ...

    def extend(self, x: Tensor | None, scale: int, cond: Cond, memory: Any) -> tuple[Tensor, Any]:
        """Logits (B, n_k, V) of one more scale from its inputs x (B, n_k, C), none at scale 0.

        memory is what the scales below left (None at scale 0), batch-first; a new one comes back.
        """
        ...

    def prefill(self, x: Tensor, scales: int, cond: Cond) -> tuple[Tensor, Any]:
        """The first `scales` scales at once: all their logits, and the memory they leave."""
        ...


class ScaleBackboneConfig(Protocol):
    """For token maps of sides `scales` out of `codes` codes that are `code_width` wide."""

    @property
    def scales(self) -> tuple[int, ...]: ...
    @property
    def codes(self) -> int: ...
    @property
    def code_width(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    def build(self) -> nn.Module: ...


class Process(Protocol):
    """x_t = alpha(t) x0 + sigma(t) eps; t grows with noise; tensors in and out have one shape."""

    @property
    def times(self) -> tuple[float, float]:
        """The clean end and the noise end of t."""
        ...

    def at(self, u: Tensor) -> Tensor:
        """Where training and validation go for u in [0, 1), from clean to noise."""
        ...

    def share(self, t: Tensor) -> Tensor:
        """How far along the path t is, from 0 at clean to 1 at noise."""
        ...

    def coeffs(self, t: Tensor) -> tuple[Tensor, Tensor]: ...
    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """d alpha / dt and d sigma / dt."""
        ...

    def time(self, log_snr: Tensor) -> Tensor:
        """t where log(alpha^2 / sigma^2) = log_snr."""
        ...


class Prediction(Protocol):
    """What the network was asked for: out = p x0 + q eps, after scaling its inputs."""

    def row(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]: ...
    def inputs(self, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
        """The factor on x_t and the time that the network sees."""
        ...

    def split(self, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """The predicted map and the raw learned variance, if any."""
        ...


class Denoise(Protocol):
    """A process and a way to estimate (x0, eps) along it; guidance and clipping wrap another."""

    @property
    def process(self) -> Process: ...
    def evaluations(self, t: Tensor) -> int:
        """Network evaluations per row of one call at t."""
        ...

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Estimate: ...


class Sampler(Protocol[S]):
    """From noise to images step by step; methods are pure, S is a frozen value `take` can fork."""

    @property
    def num_steps(self) -> int: ...
    @property
    def noise_shape(self) -> tuple[int, ...]: ...
    @property
    def stochastic(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    def init(self, noise: Tensor, cond: Cond, keys: Any) -> S: ...
    def look(self, state: S) -> S:
        """Evaluate the network here once and keep what it said."""
        ...

    def step(self, state: S) -> S: ...
    def preview(self, state: S) -> Tensor:
        """The best guess at the final images (B, 3, H, W); at the last step, the images."""
        ...

    def rekey(self, state: S, keys: Any) -> S:
        """The same past with a new future; noise that was used already is past.

        ValueError if nothing ahead is random.
        """
        ...

    def cost(self, k: int) -> Cost:
        """What step k spends on each row."""
        ...


class Tokenizer(Protocol):
    """Between images (B, 3, H, W) in [-1, 1] and unit-scaled latents (B, C, h, w).

    Scale and shift live inside.
    """

    def encode(self, images: Tensor) -> Moments: ...
    def decode(self, z: Tensor) -> Tensor: ...
    def to(self, device: torch.device | str) -> Self: ...


class TokenizerConfig(Protocol):
    def build(self) -> Any: ...


class ScaleTokenizer(Protocol):
    """Between images (B, 3, H, W) in [-1, 1] and pyramids of tokens, added up in one map f_hat
    (B, C, h, w) from the coarsest scale to the finest.
    """

    @property
    def scales(self) -> tuple[int, ...]:
        """The side p_k of every token map; n_k = p_k^2."""
        ...

    @property
    def num_codes(self) -> int: ...
    def encode(self, images: Tensor) -> Pyramid: ...
    def pyramid(self, tokens: tuple[Tensor, ...]) -> Pyramid:
        """Tokens (B, n_k) of every scale with the inputs that predict them."""
        ...

    def blank(self, batch: int) -> Tensor:
        """f_hat (B, C, h, w) before the first scale."""
        ...

    def accumulate(self, f_hat: Tensor, tokens: Tensor, scale: int) -> Tensor:
        """f_hat with the tokens (B, n_k) of scale k added, or with mixtures of codes in shares
        (B, n_k, V); a new tensor.
        """
        ...

    def next_input(self, f_hat: Tensor, scale: int) -> Tensor:
        """What predicts the tokens of `scale` >= 1 from the scales below it: (B, n_k, C)."""
        ...

    def decode(self, f_hat: Tensor) -> Tensor:
        """Images (B, 3, H, W); after any scale, which previews the rest."""
        ...

    def to(self, device: torch.device | str) -> Self: ...


class TrainableTokenizer(Protocol):
    """A tokenizer's network while it is trained."""

    def __call__(self, images: Tensor, keys: Keys | None = None) -> Reconstruction:
        """Through the bottleneck and back; with keys it may sample, without it is exact."""
        ...

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """What may be trained while every latent stays as it is."""
        ...


class Verifier(Protocol):
    """One score per image, (N,) float; higher is better.

    It may say more, which searches ask for by name (`genvis/verifiers/scoring.py`): needs, of
    "label", "prompts" and "previews", of which the last is a third argument of the call;
    differentiable; per_image, False where scores depend on the images beside; check(cond); and
    accept(images) -> Verifier, of one whose scores depend on the images chosen before.
    """

    @property
    def name(self) -> str: ...
    def __call__(self, images: Tensor, cond: Cond) -> Tensor: ...


class LossFunction(Protocol):
    """The loss of a net on a batch; level (B,) in [0, 1) fixes where on the path (validation).

    It may have three things more, which training asks for by name:
    at(step) -> LossFunction: what is minimised at that step, if not the same at every one;
    learn(net, features, keys): called after every step with the `Loss.features` of its whole batch
    and keys of one row, for what a network learns without gradients;
    players: Mapping[str, Player], the networks that are trained against or beside this one.
    """

    def __call__(
        self, net: nn.Module, batch: Batch, keys: Keys, level: Tensor | None = None
    ) -> Loss: ...


@dataclass(frozen=True)
class Player:
    """Another network with a loss of its own, such as a discriminator; gone when training ends."""

    net: nn.Module
    loss: LossFunction


class VerifierConfig(Protocol):
    def build(self) -> Verifier: ...


class Model(Protocol):
    """A network with what it takes to use it: what training trains and saves (frozen)."""

    @property
    def net(self) -> nn.Module: ...
    def to(self, device: torch.device | str) -> Self: ...
    def save_pretrained(self, folder: str | Path) -> None: ...


class ModelConfig(Protocol):
    def build(self) -> Any: ...


class Objective(Protocol):
    """What training minimises; `build` binds it to what is trained."""

    def build(self, model: Any) -> LossFunction: ...


class DatasetConfig(Protocol):
    def build(self, split: str) -> "Dataset": ...


class Dataset(Protocol):
    """Finite examples by number. One call per batch: rows in the order asked for.

    A dataset may also have `augmented(indices, keys) -> Batch`, which training then reads instead:
    flips, random crops and the choice among captions as the keys have it; and `check(model)`, which
    raises ValueError where its examples are not for that model.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, indices: Sequence[int]) -> Batch:
        """The same batch every time."""
        ...

"""What every kind of generator is: a network with all that sampling it needs, in one folder.

A generator's folder is `config.json` (everything but weights) beside `model.safetensors` (the
network's weights, packed where it was quantized).
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import nn

from genvis.checkpoint import load_state, read_folder, save_folder
from genvis.models import MODELS, model_folder, read_model
from genvis.samplers import SAMPLERS
from genvis.samplers.generate import of_classes
from genvis.text.prompted import Prompted
from genvis.types import Cond, Sampler, TextEncoder, TextEncoderConfig

KINDS = ("generator", "scale_generator")  # in MODELS


class Change(Protocol):
    """Something done to a network before it is sampled, such as quantization."""

    def apply(self, net: nn.Module) -> nn.Module: ...


class SamplerChoice(Protocol):
    """How to sample, without the weights: what a folder suggests and a command line overrides.

    One that uses more weights than the generator's has `others`, the models they are of; one that
    may have no use for a negative prompt says in `guided` whether it has.
    """

    kind: ClassVar[str]  # of generator, that it is for

    def build(self, generator: Any) -> Sampler: ...


@dataclass(frozen=True)
class BaseGenerator:
    kind: ClassVar[str]
    config: Any
    net: nn.Module
    tokenizer: Any

    @classmethod
    def from_pretrained(cls, source: str | Path, *, trust_code: bool = False) -> Self:
        """From a model folder, a finished run's folder or a hub id; on the CPU, in eval mode."""
        made: Self = _load(source, (cls.kind,), trust_code)
        return made

    def save_pretrained(self, folder: str | Path) -> None:
        save_folder(folder, MODELS.dump(self.config), self.net.state_dict())

    @property
    def num_classes(self) -> int:
        return self.config.backbone.num_classes

    @property
    def text(self) -> TextEncoder | None:
        """What encodes prompts, where the config names one."""
        return self.net.text if isinstance(self.net, Prompted) else None

    @property
    def backbone(self) -> nn.Module:
        """The network that changes are made to, behind a text encoder if there is one."""
        net: nn.Module = self.net.net if isinstance(self.net, Prompted) else self.net
        return net

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """On another device; this one's network stays where it is."""
        if self.device == torch.device(device):
            return self
        net, tokenizer = copy.deepcopy((self.net, self.tokenizer))
        return replace(self, net=net.to(device), tokenizer=tokenizer.to(device))

    def changed(self, *changes: Change) -> Self:
        """The same generator with more changes applied to its network."""
        return self.having(apply(changes, self.backbone), *changes)

    def having(self, backbone: nn.Module, *changes: Change) -> Self:
        """The same generator on another backbone, to which these further changes led."""
        net = self.net.around(backbone) if isinstance(self.net, Prompted) else backbone
        config = replace(self.config, changes=(*self.config.changes, *changes))
        return replace(self, config=config, net=net.eval())

    def things(
        self,
        classes: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        negative: str | None = None,
    ) -> Cond:
        """What images show in turn, P rows: prompts, encoded once, with what all of them steer away
        from; else the given classes, or all there are. ValueError for what this model does not
        take.
        """
        if prompts is None:
            if negative is not None:
                raise ValueError("a negative prompt needs prompts")
            return of_classes(self.num_classes, classes)
        if not isinstance(self.net, Prompted):
            takes = f"{self.num_classes} classes" if self.num_classes else "none"
            raise ValueError(f"prompts were given, but this model takes {takes}")
        if classes is not None:
            raise ValueError("give classes or prompts, not both")
        if not prompts:
            raise ValueError("prompts must name at least one, or be None")
        against = None if negative is None else Cond(prompts=(negative,) * len(prompts))
        return self.net.prepared(Cond(prompts=tuple(prompts), negative=against))

    def choice(self, config: SamplerChoice | None = None) -> SamplerChoice:
        """The config, or the generator's own. ValueError if it is for another kind of generator."""
        chosen: SamplerChoice = config or self.config.sampler
        if chosen.kind != self.kind:
            name = SAMPLERS.name_of(chosen)
            raise ValueError(f"sampler {name} is for a {chosen.kind}, this is a {self.kind}")
        return chosen

    def sampler(self, config: SamplerChoice | None = None) -> Sampler:
        """A sampler of these weights; without a config, as the generator's own config suggests."""
        return self.choice(config).build(self)


def check_negative(sampler: SamplerChoice, negative: str | None) -> None:
    """ValueError for a negative prompt that the sampler has no use for."""
    if negative is not None and not getattr(sampler, "guided", True):
        raise ValueError(
            f"negative {negative!r} needs guidance by the prompt, which this sampler has not: give "
            "sampler.guidance.scale, and no guidance.weak"
        )


def told(
    text: TextEncoderConfig | None, net: nn.Module, kind: type[Prompted], config: Any
) -> nn.Module:
    """The network of a backbone's config with an encoder in front, if there is one. ValueError
    unless it takes that encoder's features.
    """
    if text is None:
        return net
    width, tokens = getattr(config, "text_width", 0), getattr(config, "text_tokens", text.length)
    exactly = getattr(config, "text_padding", False)  # U-ViT's, whose padding is read as a text
    if width != text.width or tokens < text.length or (exactly and tokens > text.length):
        most = "" if exactly else "up to "
        takes = f"{most}{tokens} tokens of width {width}" if width else "no text"
        raise ValueError(
            f"text gives {text.length} tokens of width {text.width}, the backbone takes {takes}"
        )
    return kind(text.build(), net)


def check_same_text(ours: "BaseGenerator", theirs: "BaseGenerator", name: str) -> None:
    """ValueError unless both read the text that one of them encoded."""
    if ours.config.text != theirs.config.text:
        raise ValueError(f"{name} has another text encoder than this generator")
    if isinstance(ours.text, nn.Module):
        raise ValueError(f"{name} has a text encoder of its own, trained with it, as this one has")


def apply(changes: Iterable[Change], net: nn.Module) -> nn.Module:
    """The changes to the network, or to the backbone behind a text encoder."""
    if isinstance(net, Prompted):
        return net.around(apply(changes, net.net))
    for change in changes:
        net = change.apply(net)
    return net


def load_generator(source: str | Path, *, trust_code: bool = False) -> BaseGenerator:
    """The generator in a folder, of whichever kind it is: see `BaseGenerator.from_pretrained`."""
    made: BaseGenerator = _load(source, KINDS, trust_code)
    return made


def _load(source: str | Path, kinds: Iterable[str], trust_code: bool) -> Any:
    source = model_folder(source)
    saved = read_folder(source)
    wanted = tuple(MODELS.resolve(kind) for kind in kinds)
    generator = read_model(saved, source, wanted, trust_code=trust_code).build()
    load_state(generator.net, saved.tensors, str(source))
    generator.net.eval().requires_grad_(False)
    return generator

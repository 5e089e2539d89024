"""Training a tokenizer: give images back, look like them, keep the bottleneck in order, and, in a
later stage, fool a discriminator.

Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.1;
the two stages: Hansen-Estruch et al. 2025, "Learnings from Scaling Visual Tokenizers for
Reconstruction and Generation", section 2.3.
Letters: B rows; images (B, 3, H, W) in [-1, 1].
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from genvis.config import config
from genvis.objectives import PERCEPTUAL
from genvis.objectives.adversary import Adversary, Judgement, frozen
from genvis.objectives.perceptual import Perceptual
from genvis.random import Keys
from genvis.types import Batch, Loss, Player

PSNR_PEAK = 4.0  # the square of the range of [-1, 1]


@config
class Reconstruct:
    """loss = l2 |x - y|^2 + l1 |x - y| + likeness d(x, y) + penalty (the bottleneck's own loss) +
    the adversary's; penalty is the KL weight of a continuous tokenizer, 1 for a codebook.
    """

    l2: float = 1.0
    l1: float = 0.0
    perceptual: Annotated[Perceptual, PERCEPTUAL] | None = None
    likeness: float = 1.0
    penalty: float = 1.0
    adversary: Adversary | None = None
    decoder_only: bool = False  # so that all latents stay what they are

    def __post_init__(self) -> None:
        if min(self.l2, self.l1, self.likeness, self.penalty) < 0:
            raise ValueError("l2, l1, likeness and penalty must be at least 0")

    def build(self, model: Any) -> "ReconstructionLoss":
        """Bound to a `TokenizerModel`; freezes its encoder if only the decoder is trained.

        ValueError for a model whose network is no `TrainableTokenizer`, or is frozen.
        """
        net = model.net
        decoder = [*getattr(net, "decoder_parameters", tuple)()]
        if not any(parameter.requires_grad for parameter in decoder):
            raise ValueError(
                f"reconstruction trains a tokenizer, and {type(net).__name__} has nothing to "
                "train; to train a trained one further, give its own config and init: FOLDER"
            )
        device = decoder[0].device
        if self.decoder_only:
            net.requires_grad_(False)
            for parameter in decoder:
                parameter.requires_grad_(True)
        distance = None if self.perceptual is None else self.perceptual.build().to(device)
        players = {}
        if self.adversary is not None:
            judge = self.adversary.discriminator.build().to(device)
            players["discriminator"] = Player(judge, Judgement(self.adversary.game, net))
        weight = 0.0 if self.adversary is None else self.adversary.weight
        return ReconstructionLoss(self, distance, weight, players)


@dataclass(frozen=True)
class ReconstructionLoss:
    objective: Reconstruct
    distance: nn.Module | None
    adversarial: float  # the weight of the adversary's part
    players: Mapping[str, Player] = field(default_factory=dict)

    def at(self, step: int) -> "ReconstructionLoss":
        adversary = self.objective.adversary
        return self if adversary is None else replace(self, adversarial=adversary.weight_at(step))

    def __call__(
        self, net: nn.Module, batch: Batch, keys: Keys, level: Tensor | None = None
    ) -> Loss:
        made = net(batch.x, keys.fold("bottleneck") if net.training else None)
        gap = (batch.x - made.images.float()).flatten(1)
        parts = {"l2": gap.square().mean(1), "l1": gap.abs().mean(1), "penalty": made.penalty}
        if self.distance is not None:
            parts["likeness"] = self.distance(made.images.float(), batch.x)
        loss = sum((getattr(self.objective, name) * part for name, part in parts.items()), 0.0)
        if self.objective.adversary is not None and self.adversarial:
            parts["fooling"] = self._fool(made.images)
            loss = loss + self.adversarial * parts["fooling"]
        clamped = (batch.x - made.images.float().clamp(-1, 1)).flatten(1).square().mean(1)
        parts["psnr"] = 10 * (PSNR_PEAK / clamped.detach().clamp(min=1e-10)).log10()
        assert isinstance(loss, Tensor)
        return Loss(loss, logs={**parts, **made.logs}, features=made.features)

    def _fool(self, images: Tensor) -> Tensor:
        assert self.objective.adversary is not None
        with frozen(self.players["discriminator"].net) as judge:
            return self.objective.adversary.game.fool(judge(images).float()).flatten(1).mean(1)

    @torch.no_grad()
    def learn(self, net: nn.Module, features: Tensor, keys: Keys) -> None:
        """Unless only the decoder is trained."""
        if not self.objective.decoder_only:
            learn: Any = net.learn
            learn(features, keys)

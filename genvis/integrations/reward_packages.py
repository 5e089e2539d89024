"""Rewards that only their authors' packages can run: ImageReward and VQAScore by CLIP-FlanT5.

Weights are the user's own files; a missing file or package is one line that names what to get.
Source: Xu et al. 2023, "ImageReward"; Lin et al. 2024, "Evaluating Text-to-Visual Generation with
Image-to-Text Generation" (VQAScore). Letters: B images.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genvis.checkpoint import file_sha256, load_state
from genvis.config import config
from genvis.devices import processes
from genvis.features.clip import read_state
from genvis.features.prepare import prepare
from genvis.images import png, to_uint8
from genvis.types import Cond
from genvis.verifiers.scoring import Need, PerImage

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of ImageReward's head, over its training set
TOKENS = 35  # that it reads of a prompt
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'


def standardised(head: Tensor) -> Tensor:
    """What ImageReward makes of its head's output: about zero mean and unit variance."""
    return (head - MEAN) / STD


@dataclass(frozen=True)
class ImageReward(PerImage):
    """About -2 to 2. net: the package's, of which `blip` and `mlp` are used."""

    net: Any
    sha256: str
    needs: ClassVar[tuple[Need, ...]] = ("prompts",)
    differentiable: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return f"ImageReward[{self.sha256[:6]}]"

    @property
    def device(self) -> torch.device:
        return next(self.net.mlp.parameters()).device

    def check(self, cond: Cond) -> None:
        for prompt in cond.prompts or ():
            tokens = len(self.net.blip.tokenizer(prompt).input_ids)
            if tokens > TOKENS:
                raise ValueError(
                    f"the prompt {prompt[:40]!r} has {tokens} tokens, more than the {TOKENS} "
                    "that ImageReward reads; shorten it"
                )

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        assert cond.prompts is not None
        blip = self.net.blip
        words = blip.tokenizer(
            list(cond.prompts), padding="max_length", max_length=TOKENS, return_tensors="pt"
        ).to(images.device)
        seen = blip.visual_encoder(prepare(images, 224))  # (B, patches, width)
        fused = blip.text_encoder(
            words.input_ids,
            attention_mask=words.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], device=seen.device).long(),
            return_dict=True,
        )
        return standardised(self.net.mlp(fused.last_hidden_state[:, 0].float())[:, 0])


@config
class ImageRewardConfig:
    """path: a folder with ImageReward.pt and med_config.json, as the hub has THUDM/ImageReward."""

    path: str

    def build(self) -> ImageReward:
        weights, sizes = (Path(self.path) / name for name in ("ImageReward.pt", "med_config.json"))
        for file in (weights, sizes):
            if not file.is_file():
                raise ValueError(f"{file}: not there; get THUDM/ImageReward's two files")
        made = _package("ImageReward.ImageReward", "image-reward").ImageReward
        net: nn.Module = made(med_config=str(sizes), device="cpu")
        state = {k: v for k, v in read_state(weights).items() if not k.endswith(".position_ids")}
        own = {k: v for k, v in net.state_dict().items() if k.endswith(".position_ids")}
        load_state(net, {**own, **state}, str(weights))
        net.eval().requires_grad_(False).to(processes().device)
        return ImageReward(net, file_sha256(weights))


@dataclass(frozen=True)
class VQAScore(PerImage):
    """In [0, 1]: exp of the mean log-probability of "Yes" and the end of the sequence.

    net: the package's, from paths of pictures; it rounds to 8 bits and computes in bfloat16.
    """

    net: Any
    model: str
    needs: ClassVar[tuple[Need, ...]] = ("prompts",)
    rows: ClassVar[int] = 1  # questions of different lengths would have to be padded

    @property
    def name(self) -> str:
        return f"VQAScore[{self.model}]"

    def score(self, images: Tensor, cond: Cond) -> Tensor:
        assert cond.prompts is not None
        with TemporaryDirectory() as folder:
            paths = [Path(folder, f"{row}.png") for row in range(len(images))]
            for path, image in zip(paths, to_uint8(images), strict=True):
                path.write_bytes(png(image))
            found = self.net.forward(
                [str(path) for path in paths],
                list(cond.prompts),
                question_template=QUESTION,
                answer_template="Yes",
            )
        return found.cpu()


@config
class VQAScoreConfig:
    """path: the hub cache that holds zhiqiulin/MODEL and the tokenizer of google/flan-t5-SIZE."""

    path: str
    model: str = "clip-flant5-xxl"

    def build(self) -> VQAScore:
        size = self.model.removeprefix("clip-flant5-")
        for known in (f"zhiqiulin/{self.model}", f"google/flan-t5-{size}"):
            folder = Path(self.path) / f"models--{known.replace('/', '--')}"
            if not folder.is_dir():
                raise ValueError(f"{folder}: not there; get {known} into this hub cache first")
        made = _package("t2v_metrics", "t2v-metrics").VQAScore
        built = made(model=self.model, device=str(processes().device), cache_dir=self.path)
        return VQAScore(built.model, self.model)


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise ImportError(f"this verifier needs the package {package}: {reason}") from error

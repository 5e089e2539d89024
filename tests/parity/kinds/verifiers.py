"""Verifiers: CLIP in both towers and its scores, the affine head, ensembles, P(yes)."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from golden_case import Case

from genvis.checkpoint import load_state
from genvis.features.clip_net import official_config
from genvis.integrations.reward_packages import standardised
from genvis.verifiers.aesthetic import AffineHead
from genvis.verifiers.clip_score import scaled
from genvis.verifiers.ensemble import best_first, mean_rank, mean_z, ranks
from genvis.verifiers.token_reward import token_reward

RANK = (1e-10, 0.0)


def check(case: Case) -> None:
    names = case.expected.keys()
    checks: dict[str, Callable[[Case], None]] = {
        "image_features": clip,
        "aesthetic": mlp_head,
        "rank": rank_ensemble,
        "p_yes": tokens,
        "vqascore": tokens,
    }
    found = next((test for name, test in checks.items() if name in names), None)
    if found is None:
        case.unclaimed(f"outputs {', '.join(sorted(names))}")
    else:
        with torch.no_grad():
            found(case)


def clip(case: Case) -> None:
    given, net = case.tensors("in/"), official_config(case.spec["config"]).build()
    load_state(net, case.tensors("state/"), "official CLIPModel")
    mask = given["attention_mask"].bool() if "attention_mask" in given else None
    image = net.images(given["pixel_values"])
    text = net.texts(given["input_ids"].long(), mask)
    a, b = F.normalize(image, dim=1), F.normalize(text, dim=1)
    scale = net.logit_scale.exp()
    outputs = {
        "image_features": image,
        "text_features": text,
        "image_embeds": a,
        "text_embeds": b,
        "logits_per_image": scaled(a @ b.mT, "logit", scale),
        "logits_per_text": scaled(b @ a.mT, "logit", scale),
    }
    if len(a) == len(b):
        cosine = (a * b).sum(1)
        outputs |= {
            "cosine": scaled(cosine, "cosine", scale),
            "clipscore_100": scaled(cosine, "x100", scale),
            "clipscore_2p5": scaled(cosine, "x2.5", scale),
        }
    for name in outputs.keys() & case.expected.keys():
        case.compare(name, outputs[name])


def mlp_head(case: Case) -> None:
    official, embed = case.spec["config"], case.tensors("in/")["embed"]
    head = AffineHead(official["input_size"], official["hidden"], official["dropout"]).eval()
    load_state(head, case.tensors("state/"), "official head")
    case.compare("aesthetic", head(F.normalize(embed, dim=1)))
    if "imagereward_style" in case.expected:
        case.compare("imagereward_style", standardised(head(embed)))


def rank_ensemble(case: Case) -> None:
    given = case.tensors("in/")
    scores = given["scores"]
    means, stds = scores.mean(1), scores.std(1, correction=0)
    values = {"mean_rank": mean_rank(scores), "mean_z": mean_z(scores, means, stds)}
    if "weights" in given:
        values["weighted_mean_rank"] = mean_rank(scores, given["weights"].tolist())
    orders = {
        "rank": best_first(-values["mean_rank"]),
        "weighted": best_first(-values.get("weighted_mean_rank", values["mean_rank"])),
        "z": best_first(values["mean_z"]),
    }
    for name in case.expected:
        chosen = re.fullmatch(r"(select|top(\d+))_(rank|weighted|z)", name)
        if chosen:
            case.compare(name, orders[chosen[3]][: int(chosen[2] or 1)], tolerance=RANK)
        elif name == "rank":
            case.compare(name, ranks(scores), tolerance=RANK)
        else:
            case.compare(name, values[name], tolerance=RANK)


def tokens(case: Case) -> None:
    official, given = case.spec["config"], case.tensors("in/")
    logits = given["logits"]
    words = {"yes": ids(official["yes_id"]), "no": ids(official["no_id"])}
    labels = given["labels"].long()
    labels = torch.where(labels == official.get("ignore_index", -100), -100, labels)
    modes = {"p_yes": "full_softmax", "p_yes_vs_no": "yes_vs_no", "logodds": "logodds"}
    for name in case.expected:
        if name == "vqascore":
            case.compare(name, token_reward(logits, "answer_nll", labels=labels))
        else:
            case.compare(name, token_reward(logits, modes[name], **words))


def ids(given: Any) -> Sequence[int]:
    return given if isinstance(given, list) else [given]

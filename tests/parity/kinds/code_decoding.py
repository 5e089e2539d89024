"""The released collaborative decoding: a drafter and a refiner, and how they draw."""

from dataclasses import replace

import torch
from golden_case import Case
from pyramids import IMAGE, LOGITS, compare_steps, generator, off, released, unit

from genvis.random import HashKeys
from genvis.samplers.collaborative import Collaborative
from genvis.samplers.decoding import truncate
from genvis.samplers.generate import run
from genvis.types import Cond


def check(case: Case) -> None:
    name = case.spec.get("cls", "")
    if "sample_with_top_k_top_p" in name:
        temperature(case)
    elif "autoregressive_infer_cfg_draft" in name:
        two_models(case)
    else:
        case.unclaimed(f"class {name}")


def temperature(case: Case) -> None:
    logits = case.tensors("in/")["logits"]
    for i, (top_k, top_p, heat) in enumerate(case.spec["config"]["settings_top_k_top_p_temp"]):
        left = truncate(logits, top_k, off(top_p))
        case.compare(f"probs_{i}", (left / heat).softmax(-1))


@torch.no_grad()
def two_models(case: Case) -> None:
    label, steps = case.tensors("in/")["label_B"], case.spec["config"]["draft_steps_N"]
    drafter, refiner = generator(case, "drafter"), generator(case, "refiner")
    config = released(case.spec["call"])
    alone = config.build(drafter)
    finishing = config.build(replace(refiner, tokenizer=drafter.tokenizer))
    states = compare_steps(case, Collaborative(alone, finishing, steps), label)
    handed = states[steps]
    assert handed.memory is None
    case.compare("token_hub", torch.cat(handed.inputs, 1), tolerance=LOGITS)
    case.compare("f_hat_draft", handed.f_hat, tolerance=LOGITS)

    keys = HashKeys.of(0, range(len(label)))
    noise = keys.normal(alone.noise_shape)
    for sampler in (alone, Collaborative(alone, alone, steps)):
        images = run(sampler, noise, Cond(label=label), keys)
        case.compare("img_same_model", unit(images), tolerance=IMAGE)

"""Divergences of logits: values by position, their mean, and its gradient to the student."""

from typing import Any

import torch
from golden_case import Case

from genvis.objectives import DIVERGENCES
from genvis.objectives.divergences import tempered

VALUE, GRADIENT = (1e-6, 2e-5), (1e-8, 1e-4)


def check(case: Case) -> None:
    given, official = case.tensors("in/"), case.spec["config"]
    teacher = given["teacher_logits"]
    top = teacher.topk(official["k"], -1).indices
    case.compare("topk_mask", torch.zeros_like(teacher).scatter(-1, top, 1), None, (0, 0))
    for name in sorted({key.partition("/")[0] for key in case.expected} - {"topk_mask"}):
        student = given["student_logits"].clone().requires_grad_()
        divergence = DIVERGENCES.build(chosen(name, official))
        found = tempered(divergence, student, teacher, official["temperature"])
        mean = found.mean()
        mean.backward()
        case.compare(f"{name}/per_position", found, None, VALUE)
        case.compare(f"{name}/mean", mean[None], None, VALUE)
        case.compare(f"{name}/grad_student", student.grad, None, GRADIENT)


def chosen(name: str, official: dict[str, Any]) -> dict[str, Any]:
    k = {"k": official["k"]}
    weights = {
        "explicit_weight": official["weight_explicit"],
        "implicit_weight": official["weight_implicit"],
    }
    swapped = {"explicit": "forward", "implicit": "reverse"}
    return {
        "forward": {"name": "forward"},
        "reverse": {"name": "reverse"},
        "cakld": {"name": "cakld", "beta": official["cakld_beta"]},
        "topkld": {"name": "topkld", **k, **weights},
        "topkld_swapped": {"name": "topkld", **k, **weights, **swapped},
        "kl_top": {"name": "kl_top", **k},
        "topk_bucket": {"name": "topk_bucket", **k},
    }[name]

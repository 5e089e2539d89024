"""One battery over every entry of the table of next-scale backbones."""

import copy
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones import SCALE_BACKBONES
from genvis.checkpoint import from_pretrained, save_pretrained
from genvis.config import ConfigError
from genvis.integrations.official import from_official
from genvis.random import HashKeys
from genvis.types import Cond, join, repeat, take

COMMON = {"scales": [1, 2, 3], "codes": 11, "code_width": 5, "depth": 2, "num_classes": 5}
SMALL = {  # what makes a backbone of each class small
    "VARConfig": {**COMMON, "width": 24, "heads": 3},
    "MVARConfig": {**COMMON, "width": 32, "heads": 4, "state": 8, "scan_head": 16},
}
TEXT = {"num_classes": 0, "text": {"width": 6, "null_tokens": 2}}
VARIANTS: dict[str, dict[str, Any]] = {  # other conditions and parts, tested by the same battery
    "var_shared": {"name": "var", "shared_aln": True, "scales": [2, 3]},
    "var_plain_scores": {"name": "var", "attn_l2_norm": False, "drop_path": 0.5},
    "var_unconditional": {"name": "var", "num_classes": 0},
    "var_text": {"name": "var", **TEXT},
    "var_shared_text": {"name": "var", "shared_aln": True, **TEXT},
    "mvar_plain_scores": {"name": "mvar", "attn_l2_norm": False, "scales": [2, 3, 5], "groups": 2},
    "mvar_unconditional": {"name": "mvar", "num_classes": 0, "conv": 2},
    "mvar_text": {"name": "mvar", **TEXT},
}
PUBLISHED = {
    "var_d12": 133_186_960,
    "var_d16": 310_283_520,
    "var_d20": 600_917_136,
    "var_d24": 1_033_399_360,
    "var_d30": 2_010_020_356,
    "var_d36_s": 2_353_893_904,
    "mvar_d12": 198_435_568,
    "mvar_d16": 464_157_440,
    "mvar_d20": 900_529_136,
    "mvar_d24": 1_550_067_136,
    "mvar_d30": 3_017_065_756,
    "mvar_d32": 3_658_707_968,
}
CLASSES = sorted({SCALE_BACKBONES.name_of(SCALE_BACKBONES.build(n)) for n in SCALE_BACKBONES})
CASES = [*CLASSES, *VARIANTS]


def build(name: str, **fields: Any) -> nn.Module:
    """A small net with noise on every weight, so that small gates hide nothing."""
    chosen = {**VARIANTS.get(name, {"name": name}), **fields}
    small = SMALL[type(SCALE_BACKBONES.build(chosen["name"])).__name__]
    torch.manual_seed(0)
    net = SCALE_BACKBONES.build({**small, **chosen}).build()
    for parameter in net.parameters():
        parameter.data += nn.init.normal_(torch.empty_like(parameter), std=0.2)
    return net.eval()


def condition(net: nn.Module, rows: int = 3, other: int = 0) -> Cond:
    """All that the network is conditioned on; `other` changes all of it."""
    if net.config.num_classes:
        return Cond(label=(torch.arange(rows) + other) % net.config.num_classes)
    if getattr(net.config, "text", None):
        return Cond(text=HashKeys.of(2 + other, range(rows)).normal((4, net.config.text.width)))
    return Cond(drop=torch.ones(rows, dtype=torch.bool))


def bounds(net: nn.Module) -> list[tuple[int, int]]:
    """The first and the last token + 1 of every scale."""
    sizes = [p * p for p in net.config.scales]
    ends = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return [*pairwise(ends)]


def inputs(net: nn.Module, rows: int = 3) -> tuple[Tensor, Cond]:
    """Of all scales but the coarsest."""
    (_, first), (_, last) = bounds(net)[0], bounds(net)[-1]
    x = HashKeys.of(1, range(rows)).normal((last - first, net.config.code_width))
    return x, condition(net, rows)


def of_scale(net: nn.Module, x: Tensor, k: int) -> Tensor | None:
    """The inputs of scale k."""
    (_, first), (begin, end) = bounds(net)[0], bounds(net)[k]
    return x[:, begin - first : end - first] if k else None


def extended(net: nn.Module, x: Tensor, cond: Cond, start: int = 0, memory: Any = None) -> Tensor:
    """Logits of scales `start`, ..., one call each."""
    logits = []
    for k in range(start, len(net.config.scales)):
        out, memory = net.extend(of_scale(net, x, k), k, cond, memory)
        logits.append(out)
    return torch.cat(logits, dim=1)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", [1, 3])
def test_every_token_has_logits(name: str, rows: int) -> None:
    net = build(name)
    logits = net(*inputs(net, rows))
    assert logits.shape == (rows, bounds(net)[-1][1], net.config.codes)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_every_weight(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    net(x, replace(cond, drop=torch.tensor([True, False, False]))).square().mean().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("name", CASES)
def test_fewer_scales_are_a_prefix(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    whole, first = net(x, cond), bounds(net)[0][1]
    for _, end in bounds(net):
        close(net(x[:, : end - first], cond), whole[:, :end])


@pytest.mark.parametrize("name", CASES)
def test_finer_scales_are_not_seen(name: str) -> None:
    """And coarser ones are, as is the whole of the scale itself but in scans, which have an
    order.
    """
    net = build(name)
    x, cond = inputs(net)
    whole, first = net(x, cond), bounds(net)[0][1]
    for begin, _ in bounds(net)[1:]:
        changed = x.clone()
        changed[:, begin - first] += 1
        moved = (net(changed, cond) - whole).abs().amax((0, 2)) > 1e-6
        assert not moved[:begin].any()
        assert moved[begin:].all(), moved


@pytest.mark.parametrize("name", CASES)
def test_extend_and_prefill_equal_forward(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    whole, first = net(x, cond), bounds(net)[0][1]
    close(extended(net, x, cond), whole)
    for k, (_, end) in enumerate(bounds(net), 1):
        logits, memory = net.prefill(x[:, : end - first], k, cond)
        close(logits, whole[:, :end])
        rest = extended(net, x, cond, k, memory) if end < whole.shape[1] else whole[:, end:]
        close(rest, whole[:, end:])


@pytest.mark.parametrize("name", CASES)
def test_prefill_leaves_what_extend_leaves(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    memory: Any = None
    for k, (_, end) in enumerate(bounds(net)):
        _, memory = net.extend(of_scale(net, x, k), k, cond, memory)
        prefilled = net.prefill(x[:, : end - bounds(net)[0][1]], k + 1, cond)[1]
        assert prefilled.scales == memory.scales == k + 1
        for ours, theirs in zip(leaves(prefilled.layers), leaves(memory.layers), strict=True):
            close(ours, theirs)
    assert not leaves(memory.layers)  # nothing comes after the last scale


def leaves(value: Any) -> list[Tensor]:
    """Every tensor in a memory."""
    if isinstance(value, Tensor):
        return [value]
    parts = value if isinstance(value, tuple) else getattr(value, "__dict__", {}).values()
    return [leaf for part in parts for leaf in leaves(part)]


@pytest.mark.parametrize("name", CASES)
def test_memory_forks(name: str) -> None:
    """Rows are taken, repeated and joined; what extended a memory left it as it was."""
    net = build(name)
    x, cond = inputs(net)
    last, (begin, _) = len(net.config.scales) - 1, bounds(net)[-1]
    memory = net.prefill(x[:, : begin - bounds(net)[0][1]], last, cond)[1]
    before = [leaf.clone() for leaf in leaves(memory)]
    rows = torch.tensor([2, 0, 0])
    straight = net.extend(of_scale(net, x, last), last, cond, memory)[0]
    taken = net.extend(*take((of_scale(net, x, last), last, cond, memory), rows))[0]
    close(taken, straight[rows])
    twice = net.extend(*repeat((of_scale(net, x, last), last, cond, memory), 2))[0]
    close(twice, straight.repeat_interleave(2, 0))
    halves = join([take(memory, slice(0, 1)), take(memory, slice(1, 3))])
    close(net.extend(of_scale(net, x, last), last, cond, halves)[0], straight)
    for ours, theirs in zip(before, leaves(memory), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", CASES)
def test_no_token_is_computed_twice(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    seen: list[int] = []
    for layer in (m for n, m in net.named_modules() if n.endswith(("ffn.fc1", "mamba.in_proj"))):
        layer.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    extended(net, x, cond)
    per_layer = 2 if name.startswith("mvar") else 1
    assert sum(seen) == bounds(net)[-1][1] * net.config.depth * per_layer


@pytest.mark.parametrize("name", CASES)
def test_memory_is_as_large_as_it_must_be(name: str) -> None:
    """VAR keeps two vectors of every token; M-VAR the same few numbers at every scale; both, two of
    every token of the text. Nothing else stays alive behind views.
    """
    net = build(name)
    x, cond = inputs(net)
    first = bounds(net)[0][1]
    memory: Any = None
    for k, (_, end) in enumerate(bounds(net)[:-1]):
        _, memory = net.extend(of_scale(net, x, k), k, cond, memory)
        prefilled = net.prefill(x[:, : end - first], k + 1, cond)[1]
        numbers = sum(leaf[0].numel() for leaf in leaves(prefilled.layers))
        for found in (memory, prefilled):
            parts = [leaf.untyped_storage() for leaf in leaves(found.layers)]
            held = {part.data_ptr(): part.nbytes() for part in parts}
            assert sum(held.values()) == 4 * len(x) * numbers
        c = net.config
        if name.startswith("mvar"):
            inner, mixed = c.expand * c.width, c.expand * c.width + 2 * c.groups * c.state
            wanted = (c.conv - 1) * mixed + inner * c.state
        else:
            wanted = 2 * c.width * end
        if c.text:
            wanted += 2 * c.width * (c.text.null_tokens + cond.text.shape[1])
        assert numbers == wanted * c.depth


@pytest.mark.parametrize("name", CLASSES)
def test_memory_is_in_the_type_that_is_computed_in(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    with torch.autocast("cpu", torch.bfloat16):
        logits, memory = net.prefill(x[:, :4], 2, cond)
    assert logits.dtype == torch.float32
    assert all(leaf.dtype == torch.bfloat16 or leaf.ndim == 4 for leaf in leaves(memory.layers))
    wide = {leaf.dtype for leaf in leaves(memory.layers) if leaf.ndim == 4}
    assert wide == {torch.float32 if name == "mvar" else torch.bfloat16}  # states of scans


@pytest.mark.parametrize("name", CASES)
def test_a_narrow_net_runs(name: str) -> None:
    net = build(name).bfloat16()
    x, cond = inputs(net)
    whole, steps = net(x, cond), extended(net, x, cond)
    assert whole.dtype == steps.dtype == torch.float32
    torch.testing.assert_close(steps, whole, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", CASES)
def test_rows_do_not_see_each_other(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    close(torch.cat([net(*take((x, cond), slice(i, i + 1))) for i in range(3)]), net(x, cond))


@pytest.mark.parametrize("name", CASES)
def test_dropped_rows_forget_their_condition(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    free = net(x, cond.dropped())
    close(net(x, Cond(drop=torch.ones(3, dtype=torch.bool))), free)
    if cond.label is None and cond.text is None:  # nothing to forget
        close(net(x, cond), free)
        return
    assert torch.equal(net(x, condition(net, other=1).dropped()), free)
    assert not torch.allclose(free, net(x, cond), atol=1e-3)
    assert not torch.allclose(net(x, condition(net, other=1)), net(x, cond), atol=1e-3)
    half = torch.tensor([True, False, True])
    close(net(x, replace(cond, drop=half)), torch.where(half[:, None, None], free, net(x, cond)))
    with pytest.raises(ValueError, match="is missing: this network is"):
        net(x, Cond(drop=half))


@pytest.mark.parametrize("name", ["var", "mvar"])
def test_the_null_class_is_the_last(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    assert torch.equal(net(x, Cond(label=torch.full((3,), 5))), net(x, cond.dropped()))


@pytest.mark.parametrize("name", ["var_text", "var_shared_text", "mvar_text"])
def test_padding_of_texts_is_not_seen(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    mask = torch.arange(4) < torch.tensor([4, 2, 0])[:, None]
    masked = net(x, replace(cond, text_mask=mask))
    close(masked[0], net(x, cond)[0])
    short = replace(cond, text=cond.text[:, :2], text_mask=mask[:, :2])
    close(masked[1:], net(x, short)[1:])
    close(masked[2], net(x, cond.dropped())[2])  # no text at all
    junk = torch.where(mask[..., None], cond.text, 7.0)
    close(net(x, replace(cond, text=junk, text_mask=mask)), masked)
    with pytest.raises(ValueError, match=r"cond.text must be \(B, L, 6\), got"):
        net(x, Cond(text=cond.text[..., :5]))


@pytest.mark.parametrize("name", CASES)
def test_save_and_load_are_exact(name: str, tmp_path) -> None:
    net = build(name)
    save_pretrained(net, tmp_path / "model", SCALE_BACKBONES)
    loaded = from_pretrained(tmp_path / "model", SCALE_BACKBONES)
    assert loaded.config == net.config
    assert torch.equal(net(*inputs(net)), loaded(*inputs(net)))


@pytest.mark.parametrize("name", CASES)
def test_weights_are_used_only_through_their_layer(name: str) -> None:
    """So that a layer may be replaced, as quantization does."""
    net = build(name)
    whole = net(*inputs(net))
    for module in [*net.modules()]:
        for child, layer in [*module.named_children()]:
            if type(layer) is nn.Linear:
                setattr(module, child, nn.Sequential(layer))
    assert torch.equal(net(*inputs(net)), whole)


def test_paths_are_dropped_in_training_only() -> None:
    net = build("var_plain_scores")
    x, cond = inputs(net, rows=8)
    assert [block.drop_path.p for block in net.blocks] == [0, 0.5]
    assert torch.equal(net(x, cond), net(x, cond))
    torch.manual_seed(0)
    net.train()
    assert not torch.equal(net(x, cond), net(x, cond))


@pytest.mark.parametrize("name", ["var", "mvar", "var_shared"])
def test_initial_values_are_the_released_ones(name: str) -> None:
    fields = {**SMALL["VARConfig"], "name": "var", **VARIANTS.get(name, {"name": name})}
    torch.manual_seed(0)
    net = SCALE_BACKBONES.build({**fields, "width": 96, "gate_init": 1e-2}).build()
    std = math.sqrt(1 / (3 * 96))
    block = net.blocks[0]
    expected = {
        net.word_embed.weight: std,
        net.pos_1LC: std,
        net.class_emb.weight: std,
        net.head.weight: 0.02 * std,
        net.head_nm.ada_lin[1].weight: 0.5 * std,
        block.attn.mat_qkv.weight: std,
        block.attn.proj.weight: std / 2,  # sqrt(2 depth)
        block.ffn.fc1.weight: std,
        block.ffn.fc2.weight: std / 2,
    }
    if name == "var_shared":
        expected |= {
            block.ada_gss[:, :, :2]: 1e-2 / 96**0.5,
            block.ada_gss[:, :, 2:]: 0.5 / 96**0.5,
        }
        expected |= {net.shared_ada_lin[1].weight: std}
    else:
        rows = block.ada_lin[1].weight
        expected |= {rows[: 2 * 96]: 1e-2 * std, rows[2 * 96 :]: 0.5 * std}
    if name == "mvar":
        expected |= {block.mamba.in_proj.weight: std, block.mamba.out_proj.weight: std}
        expected |= {block.mamba.conv1d.weight: 0.02}
        assert not block.mamba.conv1d.bias.any()
    for weight, wanted in expected.items():
        n = weight.numel()
        assert weight.std().item() == pytest.approx(wanted, rel=5 / math.sqrt(2 * n))
    assert block.attn.scale_mul_1H11.exp().allclose(torch.tensor(4.0))
    assert not any(
        p.any() for n, p in net.named_parameters() if n.endswith("bias") and "dt" not in n
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["var", "var_shared_text", "mvar"])
def test_compiled_equals_eager(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    close(compiled(x, cond), net(x, cond))
    step = torch.compile(net.extend, backend="aot_eager", fullgraph=True)
    first, memory = step(None, 0, cond, None)
    close(first, net(x, cond)[:, : first.shape[1]])
    close(
        step(of_scale(net, x, 1), 1, cond, memory)[0],
        net.extend(of_scale(net, x, 1), 1, cond, memory)[0],
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["var", "mvar"])
def test_generated_code_equals_eager(name: str) -> None:
    """Forward and backward through inductor."""
    net = build(name)
    twin = copy.deepcopy(net)
    compiled = torch.compile(twin, fullgraph=True)
    ours, theirs = net(*inputs(net)), compiled(*inputs(net))
    close(theirs, ours)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CLASSES)
def test_wrong_input_is_named(name: str) -> None:
    net = build(name)
    x, cond = inputs(net)
    sides = r"for scales of sides 1, 2, 3, got \(3, 5, 5\)"
    with pytest.raises(ValueError, match=r"x must be \(B, one of \[0, 4, 13\], 5\) " + sides):
        net(x[:, :5], cond)
    with pytest.raises(ValueError, match=r"x must be \(B, 13, 5\) .*, got \(3, 13, 4\)"):
        net(x[..., :4], cond)
    with pytest.raises(ValueError, match=r"x must be \(B, 4, 5\) for scales of sides 1, 2, got"):
        net.prefill(x, 2, cond)
    with pytest.raises(ValueError, match=r"scales must be in 1..3, got 4"):
        net.prefill(x, 4, cond)
    with pytest.raises(ValueError, match="holds 0 of 3 scales: scale 0 is next, got 1"):
        net.extend(x[:, :4], 1, cond, None)
    memory = net.prefill(x, 3, cond)[1]
    with pytest.raises(ValueError, match="holds 3 of 3 scales"):
        net.extend(x[:, :4], 3, cond, memory)
    memory = net.prefill(x[:, :0], 1, cond)[1]
    with pytest.raises(ValueError, match=r"x must be \(B, 4, 5\) for scale 1 of sides 1, 2, got"):
        net.extend(x, 1, cond, memory)
    with pytest.raises(ValueError, match="as many rows as cond has"):
        net.extend(None, 0, Cond(), None)
    with pytest.raises(IndexError):
        net(x, Cond(label=torch.full((3,), 6)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": [1, 3, 2]}, "scales must be positive and grow"),
        ({"width": 25}, "width must be divisible by heads"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\)"),
        ({"codes": 0}, "must be at least 1"),
        ({"text": {"width": 6}}, "labels or text, not both"),
    ],
)
def test_wrong_configs_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SCALE_BACKBONES.build({"name": "var", **SMALL["VARConfig"], **fields})


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        net = SCALE_BACKBONES.build(name).build()
    assert sum(p.numel() for p in net.parameters()) == PUBLISHED[name]


def released(name: str) -> tuple[nn.Module, dict[str, Any], dict[str, Tensor]]:
    """A small net, the arguments of its released class, and its weights in the released layout."""
    net, c = build(name), build(name).config
    official = {"num_classes": c.num_classes, "depth": c.depth, "embed_dim": c.width}
    official |= {"num_heads": c.heads, "patch_nums": list(c.scales)}
    official |= {"vocab_size": c.codes, "Cvae": c.code_width}
    if name == "mvar":
        official["mamba"] = {"d_state": c.state, "headdim": c.scan_head}
    state = dict(net.state_dict())
    state["lvl_1L"] = torch.tensor([[0, *[1] * 4, *[2] * 9]])
    for i in range(c.depth):
        state[f"blocks.{i}.attn.zero_k_bias"] = torch.zeros(c.width)
    return net, official, state


@pytest.mark.parametrize("name", ["var", "mvar"])
def test_released_layouts_are_read_strictly(name: str) -> None:
    net, official, state = released(name)
    assert torch.equal(from_official(name, state, official)(*inputs(net)), net(*inputs(net)))
    trainer = {"var_wo_ddp": state, "vae_local": {}, "var_opt": {}}
    nested = from_official(name, {"trainer": trainer, "epoch": 3, "args": {}}, official)
    assert torch.equal(nested(*inputs(net)), net(*inputs(net)))
    with pytest.raises(ValueError, match="positions are for the scales 1, 2, 3, not 1, 2, 4"):
        from_official(name, state, {**official, "patch_nums": [1, 2, 4]})
    plain = {key: value for key, value in state.items() if key != "lvl_1L"}
    with pytest.raises(ValueError, match=r"pos_1LC \(1, 14, \d+\) instead of \(1, 21, \d+\)"):
        from_official(name, plain, {**official, "patch_nums": [1, 2, 4]})
    with pytest.raises(ValueError, match="zero_k_bias is not what its scales make it"):
        from_official(name, {**state, "blocks.0.attn.zero_k_bias": torch.ones(1)}, official)
    with pytest.raises(ValueError, match=r"1 missing \(head.bias\)"):
        from_official(name, {k: v for k, v in state.items() if k != "head.bias"}, official)
    with pytest.raises(ConfigError, match="has no argument 'patch_num'"):
        from_official(name, state, {**official, "patch_num": [1]})


def test_other_scans_are_refused() -> None:
    _, official, state = released("mvar")
    with pytest.raises(ConfigError, match=r"mamba.rmsnorm must be True"):
        from_official("mvar", state, {**official, "mamba": {"rmsnorm": False}})
    with pytest.raises(ConfigError, match="shared_aln"):
        from_official("mvar", state, {**official, "shared_aln": True})

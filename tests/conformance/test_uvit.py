"""What is U-ViT's own: text in context, labels of released models, arguments that are refused."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones.uvit import UViTConfig, from_official
from genvis.config import ConfigError
from genvis.nn.norms import Norms
from genvis.nn.skips import Constant, InverseSqrt2, PerToken, Unscaled
from genvis.random import HashKeys
from genvis.types import Cond

TINY = UViTConfig(size=4, channels=3, width=16, depth=2, heads=2, num_classes=3)
TEXT = replace(TINY, num_classes=0, text_width=6, text_tokens=5)
OFFICIAL = {
    "img_size": 4,
    "patch_size": 2,
    "in_chans": 3,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 4,
}
X, T = HashKeys.of(0, range(2)).normal((3, 4, 4)), torch.tensor([0.0, 999.0])
PROMPTS, EMPTY = (HashKeys.of(seed, range(2)).normal((5, 6)) for seed in (1, 2))


def build(config: UViTConfig) -> nn.Module:
    torch.manual_seed(0)
    return config.build().eval()


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.replace("label_emb.embedding_table.", "label_emb."): v for name, v in state.items()
    }


@torch.no_grad()
def test_dropped_text_is_the_negative_or_zeros() -> None:
    net = build(TEXT)
    given, empty, none = (net(X, T, Cond(text=text)) for text in (PROMPTS, EMPTY, 0 * PROMPTS))
    assert not torch.allclose(given, none, atol=1e-5)
    first = torch.tensor([True, False])
    dropped = net(X, T, Cond(text=PROMPTS, drop=first))
    assert torch.equal(dropped, torch.stack([none[0], given[1]]))
    cond = Cond(text=PROMPTS, negative=Cond(text=EMPTY))
    assert torch.equal(net(X, T, cond.dropped()), empty)
    dropped = net(X, T, replace(cond, drop=first))
    assert torch.equal(dropped, torch.stack([empty[0], given[1]]))
    assert torch.equal(net(X, T, Cond(drop=torch.ones(2, dtype=torch.bool))), none)


def test_text_that_does_not_fit_is_named() -> None:
    net = build(TEXT)
    with pytest.raises(ValueError, match=r"cond\.text is missing"):
        net(X, T, Cond(label=torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"cond\.text must be \(B, L, 6\), got \(2, 5, 4\) for 2"):
        net(X, T, Cond(text=PROMPTS[..., :4]))
    longer = torch.cat([PROMPTS, EMPTY], dim=1)
    with pytest.raises(ValueError, match=r"cond\.text must have at most 5 tokens, got 10"):
        net(X, T, Cond(text=longer))
    with pytest.raises(ValueError, match=r"cond\.text must have 5 tokens, got 4"):
        build(replace(TEXT, text_padding=True))(X, T, Cond(text=PROMPTS[:, :4]))
    with pytest.raises(
        ValueError, match=r"text_mask must be \(2, 5\) bool, as cond.text, got \(2, 4\)"
    ):
        net(X, T, Cond(text=PROMPTS, text_mask=torch.ones(2, 4, dtype=torch.bool)))


@torch.no_grad()
def test_padding_counts_in_released_models_only() -> None:
    net = build(TEXT)
    mask = torch.arange(5) < torch.tensor([3, 5])[:, None]
    cond = Cond(text=PROMPTS, text_mask=mask)
    out = net(X, T, cond)
    junk = torch.where(mask[..., None], PROMPTS, torch.nan)
    assert torch.equal(net(X, T, replace(cond, text=junk)), out)
    short = Cond(text=PROMPTS[:1, :3])
    torch.testing.assert_close(net(X[:1], T[:1], short), out[:1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(net(X, T, Cond(text=PROMPTS)), out, atol=1e-6)
    masked = Cond(text=EMPTY, text_mask=mask)
    empty = net(X, T, masked)
    assert torch.equal(net(X, T, replace(cond, negative=masked).dropped()), empty)
    dropped = replace(cond, negative=masked, drop=torch.tensor([True, False]))
    assert torch.equal(net(X, T, dropped), torch.stack([empty[0], out[1]]))

    net = build(replace(TEXT, text_padding=True))
    assert torch.equal(net(X, T, cond), net(X, T, Cond(text=PROMPTS)))
    official = {"img_size": 4, "patch_size": 2, "in_chans": 3, "embed_dim": 16, "depth": 2}
    official |= {"num_heads": 2, "clip_dim": 6, "num_clip_token": 5}
    made = from_official(official, net.state_dict())
    assert torch.equal(made(X, T, cond), net(X, T, cond))
    assert made.config.text_padding


@torch.no_grad()
def test_labels_and_text_may_meet() -> None:
    net = build(replace(TEXT, num_classes=3))
    label = torch.tensor([0, 2])
    out = net(X, T, Cond(label=label, text=PROMPTS))
    for other in (Cond(label=label, text=EMPTY), Cond(label=2 - label, text=PROMPTS)):
        assert not torch.allclose(out, net(X, T, other), atol=1e-6)


@torch.no_grad()
def test_the_last_released_class_is_the_null_label_where_labels_were_dropped() -> None:
    state = official(build(TINY).state_dict())
    net = from_official(OFFICIAL, state)
    assert (net.config.num_classes, net.config.null_class) == (3, True)
    cond = Cond(label=torch.tensor([0, 1]))
    assert torch.equal(net(X, T, cond.dropped()), net(X, T, Cond(label=torch.tensor([3, 3]))))
    net = from_official({**OFFICIAL, "p_uncond": 0}, state)
    assert (net.config.num_classes, net.config.null_class) == (4, False)


def test_released_arguments() -> None:
    state = official(build(TINY).state_dict())
    for mode, skips in enumerate((Unscaled(), InverseSqrt2(), Constant(kappa=0.7))):
        net = from_official({**OFFICIAL, "scalelong": mode, "kappa": 0.7}, state)
        assert net.config.skips == skips
    from_official({**OFFICIAL, "skip": True, "qk_scale": None}, state)
    with pytest.raises(ConfigError, match=r"qk_scale must be None, as in every release, got 1\.0"):
        from_official({**OFFICIAL, "qk_scale": 1.0}, state)
    with pytest.raises(ConfigError, match="no argument 'norm_layer'"):
        from_official({**OFFICIAL, "norm_layer": None}, state)
    with pytest.raises(ConfigError, match="scalelong must be 0 to 4, got 5"):
        from_official({**OFFICIAL, "scalelong": 5}, state)
    with pytest.raises(ValueError, match=r"official U-ViT: .* 1 extra .label_emb"):
        from_official({**OFFICIAL, "num_classes": -1}, state)


@torch.no_grad()
@pytest.mark.parametrize("place", ["pre", "scaled", "peri", "mix"])
def test_every_norm_placement_runs_and_only_adds_what_it_needs(place: str) -> None:
    plain, net = build(TINY), build(replace(TINY, norms=Norms(place=place)))
    assert net(X, T, Cond(label=torch.tensor([0, 1]))).isfinite().all()
    gained = net.state_dict().keys() - plain.state_dict().keys()
    assert all(".add" in name for name in gained)
    assert bool(gained) == (place in ("peri", "mix"))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"depth": 1}, "depth must be at least 2"),
        ({"size": 5}, "size must be divisible by patch, got 5 x 5 and 2"),
        ({"heads": 3}, "width must be divisible by heads, got 16 and 3"),
        ({"num_classes": -1}, "num_classes and text_width must be at least 0"),
        ({"width": 0}, "must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(fields: dict[str, int], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        replace(TINY, **fields)


def test_gates_need_as_many_tokens() -> None:
    with pytest.raises(ValueError, match=r"reduction must be in 1\.\.6"):
        replace(TINY, skips=PerToken()).build()

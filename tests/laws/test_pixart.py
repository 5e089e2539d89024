"""PixArt: texts, the null caption, the image's size, and the released layout."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genvis.backbones.pixart import PixArt, PixArtConfig
from genvis.config import ConfigError
from genvis.integrations import from_official
from genvis.nn.embeddings import sinusoids_2d
from genvis.random import HashKeys
from genvis.types import Cond

TINY = PixArtConfig(size=4, channels=2, width=24, depth=2, heads=2, text_width=6, text_tokens=5)
OFFICIAL: dict[str, Any] = {
    "input_size": 4,
    "in_channels": 2,
    "hidden_size": 24,
    "depth": 2,
    "num_heads": 2,
    "caption_channels": 6,
    "model_max_length": 5,
    "pred_sigma": False,
}
X, T = HashKeys.of(0, range(2)).normal((2, 4, 4)), torch.tensor([3.0, 900.0])
TEXT = HashKeys.of(1, range(2)).normal((5, 6))
MASK = torch.arange(5) < torch.tensor([2, 4])[:, None]


def build(config: PixArtConfig = TINY, std: float = 0.1) -> PixArt:
    torch.manual_seed(0)
    net = config.build().eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter += std * nn.init.normal_(torch.empty_like(parameter))
    return net


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_padding_is_not_seen() -> None:
    net, cond = build(), Cond(text=TEXT, text_mask=MASK)
    out = net(X, T, cond)
    junk = torch.where(MASK[..., None], TEXT, torch.nan)
    assert torch.equal(net(X, T, replace(cond, text=junk)), out)
    for row, length in enumerate((2, 4)):
        one = slice(row, row + 1)
        close(net(X[one], T[one], Cond(text=TEXT[one, :length])), out[one])
    assert not torch.allclose(net(X, T, Cond(text=TEXT)), out, atol=1e-4)


def test_a_row_without_text_takes_the_null_caption() -> None:
    net, cond = build(), Cond(text=TEXT, text_mask=MASK)
    null = net.y_embedder.y_embedding
    assert null is not None
    free = net(X, T, Cond(text=null.expand(2, -1, -1)))
    close(net(X, T, cond.dropped()), free)
    close(net(X, T, replace(cond, text_mask=torch.zeros_like(MASK))), free)
    close(net(X, T, Cond(text=TEXT[:, :2]).dropped()), free)  # however long the prompt was
    close(net(X, T, Cond(drop=torch.tensor([True, True]))), free)
    half = net(X, T, replace(cond, drop=torch.tensor([True, False])))
    close(half, torch.stack([free[0], net(X, T, cond)[1]]))


def test_without_a_null_caption_it_is_the_negative() -> None:
    net = build(replace(TINY, null_caption=False))
    assert not [name for name in net.state_dict() if "y_embedding" in name]
    other = Cond(text=TEXT[:, :3] + 1, text_mask=MASK[:, :3])
    cond = Cond(text=TEXT, text_mask=MASK, negative=other)
    first = torch.tensor([True, False])
    out = net(X, T, replace(cond, drop=first))
    close(out, torch.stack([net(X, T, other)[0], net(X, T, cond)[1]]))
    zeros = net(X, T, Cond(text=torch.zeros(2, 1, 6)))
    close(net(X, T, replace(cond, negative=None, drop=first))[0], zeros[0])


def test_the_text_starts_without_effect() -> None:
    net = build(std=0)
    assert not net(X, T, Cond(text=TEXT)).any()
    nn.init.normal_(net.final_layer.linear.weight)
    assert torch.equal(net(X, T, Cond(text=TEXT)), net(X, T, Cond(text=-TEXT)))


def test_initial_values() -> None:
    net = build(replace(TINY, width=96, text_width=64, pixels=8), std=0)
    block = net.blocks[0]
    expected = {
        block.scale_shift_table: 96**-0.5,
        net.final_layer.scale_shift_table: 96**-0.5,
        net.t_block[1].weight: 0.02,
        net.t_embedder.mlp[0].weight: 0.02,
        net.csize_embedder.mlp[2].weight: 0.02,
        net.y_embedder.y_proj.fc1.weight: (2 / (64 + 96)) ** 0.5,  # Xavier
        net.y_embedder.y_embedding: 64**-0.5,
        block.attn.proj.weight: 96**-0.5,
        block.cross_attn.kv_linear.weight: (2 / (3 * 96)) ** 0.5,
    }
    for weight, std in expected.items():
        assert weight.std().item() == pytest.approx(std, rel=5 / (2 * weight.numel()) ** 0.5)


def test_the_size_of_the_image_is_a_condition() -> None:
    sized = replace(TINY, pixels=8)
    net, cond = build(sized), Cond(text=TEXT)
    larger = replace(sized, pixels=16).build().eval()
    larger.load_state_dict(net.state_dict())
    assert not torch.allclose(net(X, T, cond), larger(X, T, cond), atol=1e-4)
    assert net.image_size(X.device).shape == (24,)
    with pytest.raises(ConfigError, match="0 where 3 does not divide width"):
        replace(sized, width=32)


def test_the_same_weights_at_other_aspect_ratios() -> None:
    square = replace(TINY, size=8, span=2.0)
    wide = replace(square, size=(4, 12))
    net = wide.build()
    net.load_state_dict(build(square).state_dict())
    table = net.pos_embed.reshape(2, 6, 24)
    close(table[1, 3], sinusoids_2d(24, 2, 2)[3])  # halfway along both axes is 1 of 2
    assert net(torch.zeros(1, 2, 4, 12), T[:1], Cond(text=TEXT[:1])).shape == (1, 2, 4, 12)


@pytest.mark.parametrize(
    ("cond", "why"),
    [
        (Cond(), r"cond\.text is missing"),
        (Cond(text=TEXT, drop=torch.tensor([True, False])), None),
        (Cond(drop=torch.tensor([True, False])), r"cond\.text is missing"),
        (Cond(text=TEXT[..., :4]), r"cond\.text must be \(B, L, 6\), got \(2, 5, 4\) for 2 rows"),
        (Cond(text=TEXT[:1]), r"cond\.text must be \(B, L, 6\), got \(1, 5, 6\) for 2 rows"),
        (Cond(text=TEXT.repeat(1, 2, 1)), r"cond\.text must have at most 5 tokens, got 10"),
        (Cond(text=TEXT, text_mask=MASK[:, :3]), r"text_mask must be \(2, 5\) bool, .* \(2, 3\)"),
        (Cond(text=TEXT, text_mask=MASK.int()), r"text_mask must be .* torch\.int32"),
    ],
)
def test_texts_that_do_not_fit_are_named(cond: Cond, why: str | None) -> None:
    net = build()
    if why is None:
        assert net(X, T, cond).isfinite().all()
        return
    with pytest.raises(ValueError, match=why):
        net(X, T, cond)


def official(net: PixArt) -> dict[str, Tensor]:
    return {**net.state_dict(), "pos_embed": net.pos_embed}


def test_the_released_layout_is_read_strictly() -> None:
    net = build()
    state, cond = official(net), Cond(text=TEXT, text_mask=MASK)
    made = from_official("pixart", state, {**OFFICIAL, "class_dropout_prob": 0.1})
    assert made.config == net.config
    assert torch.equal(made(X, T, cond), net(X, T, cond))
    del state["pos_embed"]  # which the released scripts leave out
    assert torch.equal(from_official("pixart", state, OFFICIAL)(X, T, cond), net(X, T, cond))
    with pytest.raises(ValueError, match=r"1 missing \(y_embedder\.y_embedding\)"):
        from_official(
            "pixart", {k: v for k, v in state.items() if not k.endswith("y_embedding")}, OFFICIAL
        )
    with pytest.raises(ValueError, match=r"1 extra \(x\)"):
        from_official("pixart", {**state, "x": X}, OFFICIAL)
    with pytest.raises(ConfigError, match="has no argument 'input_sise'"):
        from_official("pixart", state, {**OFFICIAL, "input_sise": 4})


def test_the_scale_of_positions_is_checked() -> None:
    net = build(replace(TINY, span=4.0))  # 2 tokens a side at scale 1/2
    made = from_official("pixart", official(net), {**OFFICIAL, "lewei_scale": 0.5})
    assert made.config == net.config
    with pytest.raises(ValueError, match=r"pos_embed \(1, 4, 24\) is not that of 4 tokens and"):
        from_official("pixart", official(net), OFFICIAL)


def test_the_weights_tell_whether_the_size_is_a_condition() -> None:
    net = build(replace(TINY, pixels=8))
    assert from_official("pixart", official(net), OFFICIAL).config == net.config
    with pytest.raises(ValueError, match="8 extra"):
        from_official("pixart", official(net), {**OFFICIAL, "micro_condition": False})
    for name, value in {"qk_norm": True, "use_rel_pos": True, "window_block_indexes": [1]}.items():
        with pytest.raises(ConfigError, match=f"{name} must be"):
            from_official("pixart", official(net), {**OFFICIAL, name: value})


def test_released_files_hold_a_state_dict(caplog: pytest.LogCaptureFixture) -> None:
    net = build()
    mean, last = official(net), {k: v + 1 for k, v in net.state_dict().items()}
    both = {"state_dict": last, "state_dict_ema": mean, "epoch": 1}
    for content, use, bias in (
        (both, "ema", 0.0),
        (both, "model", 1.0),
        ({"state_dict": last}, "ema", 1.0),
    ):
        made = from_official("pixart", content, OFFICIAL, use)
        close(made.final_layer.linear.bias, net.final_layer.linear.bias + bias)
    assert "took 'state_dict_ema' from a training checkpoint" in caplog.text

"""Tokens are drawn from the probabilities that the network, the filters and the guidance leave.

Seeds are fixed, so nothing here is flaky. Every chi-square asks for p > 1e-4: with a sound sampler
and fresh seeds, one run of this file in a thousand would fail.
"""

from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from genvis.backbones.var import VARConfig
from genvis.random import HashKeys
from genvis.samplers.decoding import Decoding, draw, place, soften, truncate
from genvis.samplers.guided_scales import ScaleGuidance
from genvis.samplers.next_scale import NextScaleConfig
from genvis.samplers.scale_generator import ScaleGeneratorConfig
from genvis.tokenizers import TOKENIZERS
from genvis.types import Cond

DRAWS, CODES = 20_000, 12
P = 1e-4
LOGITS = HashKeys.of(1, range(1)).normal((CODES,))[0] * 1.5


def fits(tokens: Tensor, probabilities: Tensor) -> bool:
    """Whether the frequencies of tokens (N,) could be those of probabilities (V,). Codes that are
    expected less than six times count as one.
    """
    counts = tokens.bincount(minlength=len(probabilities)).double()
    expected = probabilities.double() / probabilities.double().sum() * len(tokens)
    assert counts[expected == 0].sum() == 0  # what was filtered never comes
    rare = expected < 6
    pairs = [torch.cat([n[~rare], n[rare].sum()[None]]) for n in (counts, expected)]
    counts, expected = (n[pairs[1] > 0].numpy() for n in pairs)
    return stats.chisquare(counts, expected).pvalue > P


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(),
        Decoding(top_k=5),
        Decoding(top_p=0.8),
        Decoding(top_k=9, top_p=0.95, temperature=1.7),
        Decoding(temperature=0.6, top_k=6),
    ],
    ids=str,
)
def test_normals_become_tokens_of_the_right_frequencies(decoding: Decoding) -> None:
    u = place(HashKeys.of(2, range(DRAWS)).normal((1,)))
    left = decoding.truncate(LOGITS, 0)
    tokens = decoding.draw(left.expand(DRAWS, 1, -1), u, 0)[:, 0]
    wanted = (left / decoding.temperature).softmax(-1)
    assert fits(tokens, wanted)
    assert not fits(tokens, (left / (1.2 * decoding.temperature)).softmax(-1))


def test_a_filtered_code_is_never_drawn_at_any_edge() -> None:
    keys = HashKeys.of(3, range(200))
    p = truncate(6 * keys.normal((4096,)), top_k=50).softmax(-1)[:, None]
    edges = torch.tensor([0.0, 1e-38, 1e-7, 0.5, 1 - 2**-24, 1.0])
    for u in edges:
        tokens = draw(p, u.expand(200, 1))
        assert (p.gather(-1, tokens[..., None]) > 0).all()
    first, last = (draw(p, u.expand(200, 1))[:, 0] for u in edges[[0, -1]])
    kept = [row.nonzero().flatten() for row in p[:, 0]]
    assert first.tolist() == [codes[0].item() for codes in kept]
    assert last.tolist() == [codes[-1].item() for codes in kept]


def test_rare_codes_and_far_noise_have_places_of_their_own() -> None:
    """4,095 codes of 1e-9 each: places in float32 would be shared by sixty of them."""
    p = torch.full((4096,), 1e-9)
    p[0] = 1 - 4095e-9
    inside = p.double().cumsum(0) - p.double() / 2
    assert torch.equal(draw(p.expand(4096, -1), inside / p.double().sum()), torch.arange(4096))
    z = (torch.arange(101) - 50) * 0.14
    u = place(z)
    assert (u.diff() > 0).all()
    torch.testing.assert_close(u.flip(0), 1 - u, rtol=0, atol=1e-15)


def test_a_small_change_of_noise_changes_few_tokens() -> None:
    keys = HashKeys.of(4, range(DRAWS))
    old, new = keys.fold("old").normal((1,)), keys.fold("new").normal((1,))
    p = LOGITS.softmax(-1).expand(DRAWS, 1, -1)
    before, changed = draw(p, place(old)), []
    for step in (0.05, 0.005):
        z = (1 - step**2) ** 0.5 * old + step * new
        changed.append((draw(p, place(z)) != before).float().mean().item())
    assert changed[0] < 0.15
    assert changed[1] == pytest.approx(changed[0] / 10, rel=0.3)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_largest_share_of_a_soft_code_is_a_draw(share: float) -> None:
    """Gumbel's: its frequencies are the softmax of the sharpened logits."""
    u = HashKeys.of(5, range(DRAWS)).uniform((CODES,))
    shares = soften(LOGITS, -u.log().float(), share)
    torch.testing.assert_close(shares.sum(-1), torch.ones(DRAWS))
    assert fits(shares.argmax(-1), (LOGITS * (1 + share)).softmax(-1))


def test_tokens_of_a_network_have_its_guided_probabilities() -> None:
    """On the scale after a known one, so that all rows ask for the same distribution."""
    torch.manual_seed(0)
    quantizer = {"codes": CODES, "width": 4, "scales": [1, 2]}
    nets = {"width": 8, "multipliers": [1], "blocks": 1, "groups": 4}
    tokenizer = TOKENIZERS.build({"name": "multi_scale_vq", "nets": nets, "quantizer": quantizer})
    sizes = {"scales": (1, 2), "codes": CODES, "code_width": 4, "num_classes": 3}
    backbone = VARConfig(**sizes, width=16, depth=1, heads=2)
    generator = ScaleGeneratorConfig(backbone=backbone, tokenizer=tokenizer).build()
    for parameter in generator.net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    config = NextScaleConfig(
        guidance=ScaleGuidance(scale=2.0), decoding=Decoding(top_p=0.95, temperature=1.2)
    )
    sampler, rows = config.build(generator), DRAWS // 4
    keys, keep = HashKeys.of(6, range(rows)), torch.tensor([True, *4 * [False]])
    known = (torch.full((rows, 5), 3), keep.expand(rows, 5))
    cond = Cond(label=torch.ones(rows).long(), known=known)
    with torch.no_grad():
        state = sampler.step(sampler.init(keys.normal((5,)), cond, keys))
        state = sampler.look(state)
        assert state.kept is not None
        logits = state.kept[0]
        tokens = sampler.step(state).tokens[1]
    wanted = (truncate(logits, top_p=0.95) / 1.2).softmax(-1)
    for i in range(4):
        assert fits(tokens[:, i], wanted[i])
    pairs = tokens[:, 0] * CODES + tokens[:, 1]  # drawn independently of each other
    assert fits(pairs, (wanted[0][:, None] * wanted[1]).flatten())
    other = replace(cond, label=torch.zeros(rows).long())
    with torch.no_grad():
        moved = sampler.look(sampler.step(sampler.init(keys.normal((5,)), other, keys)))
    assert not torch.allclose(moved.kept[0], logits, atol=0.1)

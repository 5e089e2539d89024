"""Per-row random numbers: the right law, nothing correlated, nothing changed by the batch.

Seeds are fixed, so nothing here is flaky. Every test asks for p > 1e-4 (or |z| < 4.5, p = 7e-6):
with a sound generator and fresh seeds, one run of this file in a thousand would fail.
"""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from genvis.random import ROOT, HashKeys, permutation, stream
from genvis.types import take

ROWS, DRAWS = 500, 400
P = 1e-4
Z = 4.5


@pytest.fixture(scope="module")
def keys() -> HashKeys:
    return HashKeys.of(7, range(ROWS))


def correlation_z(a: Tensor, b: Tensor) -> float:
    """Correlation of two samples of standard normals, in standard errors."""
    return float((a * b).sum() / math.sqrt(a.numel()))


def test_check_values() -> None:
    """shapes 3.1: the mixing function, a stream, and its first draw."""
    assert stream(ROOT) == 0xE220A8397B1DCDAF  # mix(ROOT ^ ROOT) = mix(0)
    assert stream(ROOT ^ 1) == 0x910A2DEC89025CC1
    h = stream(1, 0, 0, 0, 0)
    assert h == 0xA8DF45DD67955546
    signed = torch.tensor([h - 2**64])
    assert HashKeys(signed).uniform((1,)).item() == (0x2ADBFE5D10CE6EE9 >> 11) * 2.0**-53
    assert stream(-1) == stream(2**64 - 1)


def test_normals_are_normal(keys: HashKeys) -> None:
    x = keys.normal((DRAWS,)).double().flatten()
    n = x.numel()
    assert abs(x.mean()) < Z / math.sqrt(n)
    assert abs(x.var() - 1) < Z * math.sqrt(2 / n)
    assert abs((x**3).mean()) < Z * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < Z * math.sqrt(96 / n)
    assert stats.kstest(x.numpy(), "norm").pvalue > P


def test_uniforms_are_uniform(keys: HashKeys) -> None:
    u = keys.uniform((DRAWS,)).flatten()
    n = u.numel()
    assert u.dtype == torch.float64
    assert 0 <= u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < Z / math.sqrt(12 * n)
    assert abs(u.var() - 1 / 12) < Z / math.sqrt(180 * n)
    assert stats.kstest(u.numpy(), "uniform").pvalue > P


def test_a_wrong_law_would_be_seen(keys: HashKeys) -> None:
    x = keys.normal((DRAWS,)).double().flatten()
    assert stats.kstest((1.02 * x).numpy(), "norm").pvalue < P
    assert stats.kstest((x + 0.02).numpy(), "norm").pvalue < P


def test_bits_are_fair(keys: HashKeys) -> None:
    bits = (keys.uniform((DRAWS,)).flatten() * 2**53).long()
    ones = torch.stack([((bits >> k) & 1).sum() for k in range(53)]).double()
    statistic = ((ones - bits.numel() / 2) ** 2 / (bits.numel() / 4)).sum().item()
    assert P < stats.chi2.sf(statistic, 53) < 1 - P
    for shift in (0, 21, 45):  # low, middle and high bytes
        counts = torch.bincount((bits >> shift) & 255, minlength=256)
        assert stats.chisquare(counts.numpy()).pvalue > P


def test_keys_differ_in_fair_bits(keys: HashKeys) -> None:
    """Neighbouring rows, seeds, folds and children change half of the bits of a key."""
    pairs = [
        (keys.h[1:], keys.h[:-1]),
        (HashKeys.of(0, range(ROWS)).h, HashKeys.of(1, range(ROWS)).h),
        (keys.fold(0).h, keys.fold(1).h),
        (keys.h, keys.fold(0).h),
        (keys.split(2).h[::2], keys.split(2).h[1::2]),
    ]
    for a, b in pairs:
        flips = torch.stack([((a ^ b) >> k) & 1 for k in range(64)]).double()
        assert abs(flips.mean() - 0.5) < Z * 0.5 / math.sqrt(flips.numel())


def test_nothing_is_correlated(keys: HashKeys) -> None:
    x = keys.normal((DRAWS,)).double()
    children = keys.split(2).normal((DRAWS,)).double()
    pairs = {
        "neighbouring rows": (x[1:], x[:-1]),
        "consecutive draws": (x[:, 1:], x[:, :-1]),
        "draws two apart": (x[:, 2:], x[:, :-2]),
        "rows and seeds": (x, HashKeys.of(8, range(ROWS)).normal((DRAWS,))),
        "row i of seed s and row s of seed i": (x[8], HashKeys.of(8, [7]).normal((DRAWS,))[0]),
        "parent and fold": (x, keys.fold("step").normal((DRAWS,))),
        "neighbouring folds": (keys.fold(1).normal((DRAWS,)), keys.fold(2).normal((DRAWS,))),
        "orders of folding": (
            keys.fold(1, 2).normal((DRAWS,)),
            keys.fold(2, 1).normal((DRAWS,)),
        ),
        "parent and child": (x, children[::2]),
        "siblings": (children[::2], children[1::2]),
        "child and fold": (children[1::2], keys.fold(1).normal((DRAWS,))),
        "fold by number and by text": (
            keys.fold(1).normal((DRAWS,)),
            keys.fold("1").normal((DRAWS,)),
        ),
    }
    seen = {name: correlation_z(a.double(), b.double()) for name, (a, b) in pairs.items()}
    assert {name: z for name, z in seen.items() if abs(z) > Z} == {}
    assert correlation_z(x, x) > Z


def test_a_row_depends_on_itself_alone() -> None:
    whole, alone = HashKeys.of(3, range(10)), HashKeys.of(3, [5])
    assert torch.equal(whole.h[5:6], alone.h)
    assert torch.equal(whole.normal((4, 3))[5:6], alone.normal((4, 3)))
    assert torch.equal(whole.fold("a", 1).h[5:6], alone.fold("a", 1).h)
    assert torch.equal(whole.split(3).h[15:18], alone.split(3).h)
    assert torch.equal(take(whole, torch.tensor([5])).h, alone.h)
    assert torch.equal(HashKeys.of(3, torch.tensor([5, 0])).h, whole.h[[5, 0]])


def test_the_batch_changes_nothing(keys: HashKeys) -> None:
    parts = [take(keys, slice(i, i + 7)) for i in range(0, ROWS, 7)]
    assert torch.equal(torch.cat([part.normal((2, 5)) for part in parts]), keys.normal((2, 5)))
    assert torch.equal(torch.cat([part.uniform() for part in parts]), keys.uniform())
    assert torch.equal(torch.cat([part.split(3).h for part in parts]), keys.split(3).h)
    flat = keys.normal((12,))
    assert torch.equal(keys.normal((3, 4)).flatten(1), flat)
    assert torch.equal(keys.normal((5,)), flat[:, :5])


def test_folds_of_words_chain(keys: HashKeys) -> None:
    assert torch.equal(keys.fold("step", 3).h, keys.fold("step").fold(3).h)
    assert torch.equal(keys.fold(-1).h, keys.fold(2**64 - 1).h)


def test_no_two_children_are_equal() -> None:
    keys = HashKeys.of(0, range(500))
    families = [keys.h, keys.split(200).h, HashKeys.of(1, range(500)).h, keys.fold("split").h]
    families += [keys.fold(k).h for k in range(200)]
    families += [keys.fold(k, 0).h for k in range(50)] + [keys.split(2).split(2).h]
    every = torch.cat(families)  # 230,000 keys: p(collision) = 1e-9
    assert len(every.unique()) == len(every)


def test_shapes_and_errors() -> None:
    keys = HashKeys.of(0, range(3))
    assert keys.normal(()).shape == (3,)
    assert keys.normal((2, 0)).shape == (3, 2, 0)
    assert keys.normal((2,)).dtype == torch.float32
    assert len(HashKeys.of(0, [])) == 0
    with pytest.raises(ValueError, match="one dimension of int64"):
        HashKeys.of(0, torch.zeros(2))


def test_permutation_is_a_function_of_its_words() -> None:
    order = permutation(1000, 1, 2)
    assert order.sort().values.tolist() == list(range(1000))
    assert torch.equal(order, permutation(1000, 1, 2))
    assert not torch.equal(order, permutation(1000, 2, 1))
    assert permutation(0, 1).tolist() == []


def test_permutations_are_equally_likely() -> None:
    powers = torch.tensor([64, 16, 4, 1])
    codes = torch.stack([(permutation(4, seed) * powers).sum() for seed in range(2400)])
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > P


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_numbers() -> None:
    keys = HashKeys.of(0, range(64))
    assert torch.equal(keys.uniform((50,), "cuda").cpu(), keys.uniform((50,)))
    torch.testing.assert_close(keys.normal((50,), "cuda").cpu(), keys.normal((50,)))

"""Scans: the fast forms equal the recurrence, forward and backward, and carry their state."""

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genvis.kernels.scan import selective_scan, ssd_scan
from genvis.nn.mamba import BiMamba, Mamba, Mamba2

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
Inputs = tuple[Tensor, ...]


def channels(
    length: int, dtype: torch.dtype, size: int = 6, groups: int = 2, seed: int = 0
) -> Inputs:
    """Inputs of a selective scan; decays reach from exp(-5e-7) to exp(-8)."""
    g = torch.Generator().manual_seed(seed)
    batch, state = 2, 5
    x, dt = (torch.randn(batch, length, size, generator=g, dtype=dtype) for _ in range(2))
    a = torch.logspace(-4, 0.5, size * state, dtype=dtype).view(size, state).neg()
    b, c = (torch.randn(batch, length, groups, state, generator=g, dtype=dtype) for _ in range(2))
    h = torch.randn(batch, size, state, generator=g, dtype=dtype)
    return x, dt.abs() + 5e-3, a, b, c, h


def heads(length: int, dtype: torch.dtype) -> Inputs:
    """Inputs of an SSD scan: four heads of three channels in two groups."""
    x, dt, _, b, c, h = channels(length, dtype, size=12)
    a = torch.tensor([-1e-4, -0.1, -1.0, -3.0], dtype=dtype)
    return x.unflatten(2, (4, 3)), dt[:, :, :4], a, b, c, h.unflatten(1, (4, 3))


FORMS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], Callable[..., Inputs]]] = {
    "selective": (selective_scan, channels),
    "ssd": (ssd_scan, heads),
}


def with_gradients(scan: Callable[..., tuple[Tensor, Tensor]], given: Inputs) -> Inputs:
    """Outputs, last state and the gradients of all inputs, for a loss that sees both."""
    leaves = [value.clone().requires_grad_() for value in given]
    y, h = scan(*leaves)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return y, h, *torch.autograd.grad((weight * y).sum() + h.square().sum(), leaves)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_the_fast_form_is_the_recurrence(form: str, dtype: torch.dtype, length: int) -> None:
    scan, inputs = FORMS[form]
    given = inputs(length, dtype)
    found = with_gradients(lambda *v: scan(*v, backend="chunked"), given)
    wanted = with_gradients(lambda *v: scan(*v, backend="reference"), given)
    for ours, reference in zip(found, wanted, strict=True):
        scale = max(1.0, reference.abs().max().item())
        assert (ours - reference).abs().max() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("size", [128, 1024])  # lanes in segments; segments alone
def test_segments_and_lanes_change_nothing(size: int) -> None:
    given = channels(180 if size > 200 else 400, torch.float64, size=size, groups=1)
    found = with_gradients(lambda *v: selective_scan(*v, backend="chunked"), given)
    wanted = with_gradients(lambda *v: selective_scan(*v, backend="reference"), given)
    for ours, reference in zip(found, wanted, strict=True):
        scale = max(1.0, reference.abs().max().item())
        assert (ours - reference).abs().max() <= 1e-10 * scale


@pytest.mark.parametrize("form", FORMS)
def test_strong_decays_neither_overflow_nor_lose_gradients(form: str) -> None:
    scan, inputs = FORMS[form]
    x, dt, a, b, c, h = inputs(130, torch.float32)
    found = with_gradients(lambda *v: scan(*v), (x, 50 * dt, 10 * a, b, c, h))
    assert all(value.isfinite().all() for value in found)
    assert all(value.abs().sum() > 0 for value in found)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_a_sequence_may_come_in_pieces(form: str, backend: str) -> None:
    scan, inputs = FORMS[form]
    *given, a, b, c, h = inputs(90, torch.float64)
    whole, last = scan(*given, a, b, c, h, backend=backend)
    parts = []
    for piece in (slice(0, 1), slice(1, 70), slice(70, 90)):
        y, h = scan(*(v[:, piece] for v in given), a, b[:, piece], c[:, piece], h, backend=backend)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(h, last, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_states_stay_float32_under_bfloat16(form: str) -> None:
    scan, inputs = FORMS[form]
    x, dt, a, b, c, h = inputs(80, torch.float32)
    exact, _ = scan(x, dt, a, b, c, h)
    rounded, state = scan(*(v.bfloat16() for v in (x, dt, a, b, c)), h)
    assert (rounded.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scan(x, dt, a, b, c, h)[0], exact)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_scan_compiles_whole(form: str) -> None:
    scan, inputs = FORMS[form]
    given = inputs(40, torch.float32)
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(
        with_gradients(compiled, given), with_gradients(scan, given), strict=True
    ):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_what_does_not_fit_is_named(form: str) -> None:
    scan, inputs = FORMS[form]
    x, dt, a, b, c, h = inputs(8, torch.float32)
    with pytest.raises(ValueError, match="backend must be auto, chunked, reference, mamba_ssm"):
        scan(x, dt, a, b, c, backend="triton")
    with pytest.raises(ValueError, match="must fit each other"):
        scan(x, dt[:, :5], a, b, c)
    with pytest.raises(ValueError, match="a must have a row"):
        scan(x, dt, a[:1], b, c)
    with pytest.raises(ValueError, match=r"state must be \(2, "):
        scan(x, dt, a, b, c, h[:1])


@pytest.mark.skipif(bool(importlib.util.find_spec("mamba_ssm")), reason="mamba-ssm is installed")
@pytest.mark.parametrize("form", FORMS)
def test_a_missing_backend_is_named(form: str) -> None:
    scan, inputs = FORMS[form]
    with pytest.raises(ImportError, match="mamba-ssm"):
        scan(*inputs(8, torch.float32)[:-1], backend="mamba_ssm")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("form", FORMS)
def test_a_gpu_gives_the_same(form: str) -> None:
    scan, inputs = FORMS[form]
    given = inputs(200, torch.float64)
    found = with_gradients(lambda *v: scan(*v), tuple(v.cuda() for v in given))
    for ours, reference in zip(found, with_gradients(scan, given), strict=True):
        torch.testing.assert_close(ours.cpu(), reference, rtol=1e-10, atol=1e-10)


MIXERS: dict[str, Callable[[], nn.Module]] = {
    "mamba": lambda: Mamba(16, state=4),
    "mamba2": lambda: Mamba2(16, state=4, head=8, groups=2),
    "one_tap": lambda: Mamba2(16, state=4, head=8, conv=1),
}


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_carries_its_state_from_scale_to_scale(name: str) -> None:
    torch.manual_seed(0)
    mixer = MIXERS[name]().double()
    x = torch.randn(3, 30, 16, dtype=torch.float64)
    state, parts = None, []
    for scale in x.split([1, 4, 9, 16], dim=1):
        y, state = mixer.extend(scale, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), mixer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_is_causal(name: str) -> None:
    torch.manual_seed(0)
    mixer = MIXERS[name]()
    x = torch.randn(2, 20, 16)
    later = torch.cat([x[:, :12], torch.randn(2, 8, 16)], dim=1)
    torch.testing.assert_close(mixer(later)[:, :12], mixer(x)[:, :12])
    assert not torch.allclose(mixer(later)[:, 12:], mixer(x)[:, 12:], atol=1e-3)


def test_a_bidirectional_mixer_sees_both_sides_and_carries_nothing() -> None:
    torch.manual_seed(0)
    mixer, x = BiMamba(16, state=4), torch.randn(1, 9, 16, requires_grad=True)
    seen = torch.autograd.grad(mixer(x)[0, 4].sum(), x)[0].abs().sum(-1)[0]
    assert (seen > 0).all()
    with pytest.raises(ValueError, match="all tokens at once"):
        mixer.extend(x)


@pytest.mark.parametrize("name", MIXERS)
def test_steps_start_between_a_thousandth_and_a_tenth(name: str) -> None:
    mixer = MIXERS[name]()
    bias = mixer.dt_proj.bias if name == "mamba" else mixer.dt_bias
    steps = nn.functional.softplus(bias)
    assert ((steps > 0.99e-3) & (steps < 1.01e-1)).all()
    assert steps.min() < steps.max()

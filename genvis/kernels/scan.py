"""Scans of state-space models: Mamba-1's selective scan and Mamba-2's SSD.

Sources: Gu and Dao 2023, "Mamba", eq. 2 and algorithm 2, with B discretised by Euler's rule;
Dao and Gu 2024, "Transformers are SSMs", sections 5 and 6.
Letters: B batch, L tokens, D channels, H heads, P channels of a head, S state size, G groups,
R channels or heads of a group, T tokens of a segment, Q tokens of a chunk, N chunks or lanes.

Channel or head i reads the b and c of group i // R. Both scans start from `state` and return the
state after the last token, so a sequence may come in pieces. Decays and states are float32 or
wider, whatever the input is.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Backend = Literal["auto", "chunked", "reference", "mamba_ssm"]
Scanned = tuple[Tensor, Tensor]
CHUNK = 64


def selective_scan_reference(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> Scanned:
    """h_l = exp(dt_l a) h_{l-1} + dt_l x_l b_l and y_l = c_l . h_l, one token after another.

    x and dt (B, L, D), dt >= 0; a (D, S) <= 0; b and c (B, L, G, S); state (B, D, S).
    Returns y like x and the last state.
    """
    x, b, c = (v.to(state.dtype) for v in (x, b, c))
    b, c = (v.repeat_interleave(x.shape[2] // v.shape[2], dim=2) for v in (b, c))  # (B, L, D, S)
    y = []
    for x_l, dt_l, b_l, c_l in zip(*(v.unbind(1) for v in (x, dt, b, c)), strict=True):
        state = (dt_l[..., None] * a).exp() * state + (dt_l * x_l)[..., None] * b_l
        y.append((state * c_l).sum(-1))
    return torch.stack(y, dim=1), state


def ssd_reference(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> Scanned:
    """H_l = exp(dt_l a) H_{l-1} + dt_l x_l b_l^T and y_l = H_l c_l: one decay for all of a head.

    x (B, L, H, P); dt (B, L, H) >= 0; a (H,) <= 0; b and c (B, L, G, S); state (B, H, P, S).
    Returns y like x and the last state.
    """
    x, b, c = (v.to(state.dtype) for v in (x, b, c))
    b, c = (v.repeat_interleave(x.shape[2] // v.shape[2], dim=2) for v in (b, c))  # (B, L, H, S)
    y = []
    for x_l, dt_l, b_l, c_l in zip(*(v.unbind(1) for v in (x, dt, b, c)), strict=True):
        write = (dt_l[..., None] * x_l)[..., None] * b_l[:, :, None]  # (B, H, P, S)
        state = (dt_l * a).exp()[..., None, None] * state + write
        y.append((state @ c_l[..., None])[..., 0])
    return torch.stack(y, dim=1), state


def ssd_chunked(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, chunk: int = CHUNK
) -> Scanned:
    """`ssd_reference` by matrix products: quadratic inside chunks of Q tokens, linear between them.

    Only differences of cumulative decays are exponentiated, and only those that are <= 0.
    """
    length, kind = x.shape[1], x.dtype
    q, g = min(chunk, length), b.shape[2]
    x, dt, b, c = (_pad(v, -length % q) for v in (x, dt, b, c))
    x = rearrange(x, "b (n q) (g r) p -> b n g r q p", q=q, g=g)
    b, c = (rearrange(v, "b (n q) g s -> b n g q s", q=q) for v in (b, c))
    dt, log_decay = (rearrange(v, "b (n q) (g r) -> b n g r q", q=q, g=g) for v in (dt, dt * a))
    total = log_decay.cumsum(-1)  # (B, N, G, R, Q)

    future = torch.ones(q, q, dtype=torch.bool, device=x.device).triu(1)
    between = (total[..., :, None] - total[..., None, :]).masked_fill(future, -math.inf).exp()
    scores = (c @ b.mT)[:, :, :, None] * (between * dt[..., None, :])  # (B, N, G, R, Q, Q)
    inside = scores.to(kind) @ x

    to_end = ((total[..., -1:] - total).exp() * dt)[..., None]  # (B, N, G, R, Q, 1)
    written = ((to_end * x).to(kind).mT @ b[:, :, :, None]).to(state.dtype)  # (B, N, G, R, P, S)
    starts, h = [], rearrange(state, "b (g r) p s -> b g r p s", g=g)
    for decay, write in zip(total[..., -1].exp().unbind(1), written.unbind(1), strict=True):
        starts.append(h)
        h = decay[..., None, None] * h + write
    start = torch.stack(starts, dim=1).to(kind)
    before = total.exp()[..., None] * (c[:, :, :, None] @ start.mT)

    y = rearrange(inside + before, "b n g r q p -> b (n q) (g r) p")[:, :length]
    return y.to(kind), rearrange(h, "b g r p s -> b (g r) p s")


def selective_scan_chunked(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> Scanned:
    """`selective_scan_reference` in segments, with all states of one segment at hand at a time.

    Backward computes the states again from those between segments (Gu and Dao 2023, section 3.3.2),
    so all but one state in T can be forgotten. One operator to `torch.compile`, differentiable
    once; for higher derivatives take the reference.
    """
    x, b, c = (v.to(state.dtype) for v in (x, b, c))
    g, (t, lanes) = b.shape[2], _segment(x, a)
    length = x.shape[1]
    x, dt, b, c = (_pad(v, -length % lanes) for v in (x, dt, b, c))
    x, dt = (rearrange(v, "b l (g r) -> l b g r", g=g) for v in (x, dt))
    b, c = (rearrange(v, "b l g s -> l b g s") for v in (b, c))
    a, state = (rearrange(v, "... (g r) s -> ... g r s", g=g) for v in (a, state))
    y, states = _scan_forward(x, dt, a, b, c, state, t, lanes)
    return rearrange(y[:length], "l b g r -> b l (g r)"), states[-1].flatten(1, 2)


def _pad(v: Tensor, tokens: int) -> Tensor:
    """v (B, L, ...) with zeros behind it: where dt is 0, the state stays as it is."""
    return F.pad(v, (0, 0) * (v.ndim - 2) + (0, tokens))


def _segment(x: Tensor, a: Tensor) -> tuple[int, int]:
    """Tokens of a segment and its lanes, so that a lane's step is worth one operation and a segment
    stays in a CPU's cache, or in a small part of a GPU's memory.
    """
    width, size = 2**12 if x.device.type == "cpu" else 2**20, len(x) * a.numel()
    t = min(x.shape[1], max(8, 64 * width // size))
    lanes = min(math.isqrt(t), max(1, width // size))
    return t // lanes * lanes, lanes


def _recurrence(decay: Tensor, h: Tensor, lanes: int) -> None:
    """h_l += decay_l h_{l-1} along the first axis, in place: N lanes side by side, then chained."""
    decay, h = (rearrange(v, "(n q) ... -> n q ...", n=lanes) for v in (decay, h))
    for q in range(1, h.shape[1]):
        h[:, q].addcmul_(decay[:, q], h[:, q - 1])
    if lanes > 1:
        carry = decay.cumprod(1)  # at most 1
        for n in range(1, lanes):
            h[n].addcmul_(carry[n], h[n - 1, -1])


def _states(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, state: Tensor, lanes: int) -> Scanned:
    """Decays and states (T, B, G, R, S) of a segment that starts from `state`."""
    decay = (dt[..., None] * a).exp_()
    h = (dt * x)[..., None] * b[..., None, :]
    h[0].addcmul_(decay[0], state)
    _recurrence(decay, h, lanes)
    return decay, h


@torch.library.custom_op("genvis::selective_scan", mutates_args=())
def _scan_forward(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, t: int, lanes: int
) -> Scanned:
    """y (L, B, G, R) and the states between segments, first and last included (1 + L/T, ..., S)."""
    y, states = torch.empty_like(x), [state]
    for i in range(0, len(x), t):
        now = slice(i, i + t)
        _, h = _states(x[now], dt[now], a, b[now], states[-1], lanes)
        y[now] = (h @ c[now, ..., None])[..., 0]
        states.append(h[-1])
    return y, torch.stack(states)


@torch.library.custom_op("genvis::selective_scan_backward", mutates_args=())
def _scan_backward(
    dy: Tensor,
    dstate: Tensor,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    states: Tensor,
    t: int,
    lanes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, a, b, c and the first state: the same recurrence, backwards in time."""
    dx, ddt, da, db, dc = (torch.empty_like(v) for v in (x, dt, a, b, c))
    da.zero_()
    for i in reversed(range(0, len(x), t)):
        now, first = slice(i, i + t), states[i // t]
        decay, h = _states(x[now], dt[now], a, b[now], first, lanes)
        g = dy[now, ..., None] * c[now, ..., None, :]  # gradient of h, from its own token so far
        g[-1] += dstate
        back = g.flip(0)
        _recurrence(torch.cat([decay[:1], decay[1:].flip(0)]), back, lanes)
        g = back.flip(0)
        dstate = decay[0] * g[0]

        dc[now] = (dy[now, ..., None, :] @ h)[..., 0, :]
        db[now] = ((dt[now] * x[now])[..., None, :] @ g)[..., 0, :]
        write = (g @ b[now, ..., None])[..., 0]  # gradient of dt x
        dx[now] = dt[now] * write
        h = torch.cat([first[None], h[:-1]])
        fade = g.mul_(h).mul_(decay)  # gradient of dt a
        ddt[now] = x[now] * write + (fade * a).sum(-1)
        da += (fade * dt[now, ..., None]).sum((0, 1))
    return dx, ddt, da, db, dc, dstate.clone()


@_scan_forward.register_fake
def _(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor, t: int, lanes: int):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), state.new_empty(1 + -(-len(x) // t), *state.shape)


@_scan_backward.register_fake
def _(dy: Tensor, dstate: Tensor, *rest: Any):  # type: ignore[no-untyped-def]
    return *(torch.empty_like(v) for v in rest[:5]), torch.empty_like(dstate)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Scanned) -> None:
    *tensors, _, ctx.t, ctx.lanes = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, dy: Tensor, dstates: Tensor) -> tuple[Any, ...]:
    # the states between segments are not handed out: only the last one can have a gradient
    grads = _scan_backward(dy.contiguous(), dstates[-1], *ctx.saved_tensors, ctx.t, ctx.lanes)
    return *grads, None, None


_scan_forward.register_autograd(_backward, setup_context=_save)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    backend: Backend = "auto",
) -> Scanned:
    """Mamba-1's scan by the named backend; "auto" is the chunked form. Shapes as in
    `selective_scan_reference`; no state is a state of zeros. Returns y in the type of x, and the
    last state in float32 or wider.
    """
    forms = {
        "chunked": selective_scan_chunked,
        "reference": selective_scan_reference,
        "mamba_ssm": _selective_scan_mamba_ssm,
    }
    if backend == "mamba_ssm" and state is not None:
        raise ValueError("backend mamba_ssm cannot start its selective scan from a state")
    return _scan(forms, backend, x, dt, a, b, c, state, (len(x), *a.shape))


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    backend: Backend = "auto",
) -> Scanned:
    """Mamba-2's scan by the named backend; "auto" is the chunked form. Shapes as in
    `ssd_reference`; no state is a state of zeros. Returns y in the type of x, and the last state in
    float32 or wider.
    """
    forms = {"chunked": ssd_chunked, "reference": ssd_reference, "mamba_ssm": _ssd_mamba_ssm}
    return _scan(forms, backend, x, dt, a, b, c, state, (len(x), *x.shape[2:], b.shape[3]))


def _scan(
    forms: dict[str, Callable[..., Scanned]],
    backend: Backend,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None,
    shape: tuple[int, ...],
) -> Scanned:
    name = "chunked" if backend == "auto" else backend
    if name not in forms:
        raise ValueError(f"backend must be auto, {', '.join(forms)}, got {backend!r}")
    if dt.shape != x.shape[:3] or b.shape != c.shape or b.shape[:2] != x.shape[:2]:
        shapes = ", ".join(str(tuple(v.shape)) for v in (x, dt, b, c))
        raise ValueError(f"x, dt, b and c must fit each other in (B, L, ...), got {shapes}")
    if len(a) != x.shape[2] or x.shape[2] % b.shape[2]:
        raise ValueError(
            f"a must have a row for each of x's {x.shape[2]} channels or heads, and b and c a "
            f"divisor of them as groups, got {len(a)} and {b.shape[2]}"
        )
    wide = torch.promote_types(x.dtype, torch.float32)
    if state is None:
        state = x.new_zeros(shape, dtype=wide)
    elif state.shape != shape:
        raise ValueError(f"state must be {shape}, got {tuple(state.shape)}")
    plain = torch.amp.is_autocast_available(x.device.type)  # not on the meta device
    with torch.autocast(x.device.type, enabled=False) if plain else nullcontext():
        y, state = forms[name](
            x, dt.to(wide), a.to(wide), b.to(x.dtype), c.to(x.dtype), state.to(wide)
        )
    return y.to(x.dtype), state


def _selective_scan_mamba_ssm(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> Scanned:
    scan = _mamba_ssm("selective_scan_interface", "selective_scan_fn")
    x, dt = (rearrange(v.to(a.dtype), "b l d -> b d l").contiguous() for v in (x, dt))
    b, c = (rearrange(v.to(a.dtype), "b l g s -> b g s l").contiguous() for v in (b, c))
    y, state = scan(x, dt, a, b, c, return_last_state=True)
    return rearrange(y, "b d l -> b l d"), state


def _ssd_mamba_ssm(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> Scanned:
    scan = _mamba_ssm("triton.ssd_combined", "mamba_chunk_scan_combined")
    y, state = scan(
        x, dt, a, b, c, chunk_size=CHUNK, initial_states=state, return_final_states=True
    )
    return y, state


def _mamba_ssm(module: str, name: str) -> Callable[..., Any]:
    try:
        return getattr(import_module(f"mamba_ssm.ops.{module}"), name)
    except ImportError as error:
        raise ImportError("backend mamba_ssm needs the package mamba-ssm, with CUDA") from error

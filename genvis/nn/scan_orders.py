"""Orders in which a scan visits the tokens of a grid.

Sources: Hu et al. 2024, "ZigMa", section 4.2 (zigzag, sweep, Hilbert); Liu et al. 2024, "VMamba",
section 4.3 (cross); Huang et al. 2024, "LocalMamba", section 4.1 (windows); Phung et al. 2024,
"DiMSUM", appendix (jpeg); the Hilbert curve of any rectangle: J. Cerveny 2019, "gilbert".
Letters: h and w token rows and columns, N = h w tokens, K orders.

Every function gives (K, N) int64; a row p lists row-major token numbers, so x[p] is in scan order
and x[p][inverse(p)] is x again. Layer i takes row i mod K.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def scan_orders(name: str, h: int, w: int) -> Tensor:
    """The orders of `SCAN_ORDERS` called `name` on a grid of h by w tokens."""
    if name not in SCAN_ORDERS:
        raise ValueError(f"scan must be one of {', '.join(SCAN_ORDERS)}, got {name!r}")
    return SCAN_ORDERS[name](h, w)


def inverse(orders: Tensor) -> Tensor:
    """The orders (..., N) that undo these."""
    return orders.argsort(-1)


def sweep(h: int, w: int) -> Tensor:
    """Eight: from each corner, line by line and then column by column, always the same way."""
    return torch.stack([path.flatten() for path in _corners(h, w)])


def raster(h: int, w: int) -> Tensor:
    """One: line by line."""
    return sweep(h, w)[:1]


def bidirectional(h: int, w: int) -> Tensor:
    """Two: line by line, there and back."""
    return sweep(h, w)[[0, 6]]


def cross(h: int, w: int) -> Tensor:
    """Four: line by line and column by column, there and back."""
    return sweep(h, w)[[0, 1, 6, 7]]


def zigzag(h: int, w: int) -> Tensor:
    """Eight: as `sweep`, but every other line backwards, so that each step is to a neighbour."""
    paths = []
    for path in _corners(h, w):
        path[1::2] = path[1::2].flip(1)
        paths.append(path.flatten())
    return torch.stack(paths)


def jpeg(h: int, w: int) -> Tensor:
    """Eight: anti-diagonals in alternating directions, from each corner, along a line first and
    then along a column first.
    """
    paths = []
    for grid in _corners(h, w):
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing="ij")
        diagonal = rows + columns
        along = torch.where(diagonal % 2 == 0, columns, rows)
        paths.append(grid.flatten()[(diagonal * (h + w) + along).flatten().argsort()])
    return torch.stack(paths)


def local(h: int, w: int, window: int = 2) -> Tensor:
    """Four: window after window, in both line by line, there and back; then column by column."""
    paths = []
    for grid in _corners(h, w)[:2]:
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing="ij")
        rank = torch.zeros_like(rows)
        for digit in (rows // window, columns // window, rows % window, columns % window):
            rank = rank * (h + w) + digit
        path = grid.flatten()[rank.flatten().argsort()]
        paths += [path, path.flip(0)]
    return torch.stack(paths)


def hilbert(h: int, w: int) -> Tensor:
    """Eight: a generalised Hilbert curve in the eight orientations of the square, quarter turns
    each followed by its transpose. Steps are to neighbours; where exactly one side is odd, one
    of them may be diagonal.
    """
    paths = []
    for turns in range(4):
        for swap in (False, True):
            rows, columns = (w, h) if (turns % 2 == 1) != swap else (h, w)
            rank = torch.rot90(_hilbert_ranks(rows, columns), turns)
            paths.append((rank.T if swap else rank).flatten().argsort())
    return torch.stack(paths)


def hilbert_ranks(h: int, w: int) -> Tensor:
    """Eight: `hilbert` backwards, which the released ZigMa takes for the path; full of jumps."""
    return inverse(hilbert(h, w))


SCAN_ORDERS: dict[str, Callable[[int, int], Tensor]] = {
    "raster": raster,
    "bidirectional": bidirectional,
    "cross": cross,
    "sweep": sweep,
    "zigzag": zigzag,
    "jpeg": jpeg,
    "local": local,
    "hilbert": hilbert,
    "hilbert_ranks": hilbert_ranks,
}


def _corners(h: int, w: int) -> list[Tensor]:
    """Token numbers as seen from the corners top left, top right, bottom left and bottom right,
    each as it is and transposed.
    """
    grid = torch.arange(h * w).view(h, w)
    seen = [grid.flip(axes) for axes in ((), (1,), (0,), (0, 1))]
    return [view.clone() for corner in seen for view in (corner, corner.T)]


def _hilbert_ranks(h: int, w: int) -> Tensor:
    """When the curve visits each token (h, w); it starts top left, along the longer side."""
    rank = torch.empty(h, w, dtype=torch.int64)
    down, right = complex(h, 0), complex(0, w)
    sides = (down, right) if h >= w else (right, down)
    for step, at in enumerate(_curve(0j, *sides)):
        rank[int(at.real), int(at.imag)] = step
    return rank


def _curve(start: complex, along: complex, across: complex) -> Iterator[complex]:
    """Cells (row + column i) of a box from `start` to the far end of its side `along`."""
    length, width = round(abs(along)), round(abs(across))
    ahead, aside = along / length, across / width
    if width == 1 or length == 1:
        stride = ahead if width == 1 else aside
        yield from (start + k * stride for k in range(max(length, width)))
    elif 2 * length > 3 * width:  # a long box is two boxes in a row
        half = _even_half(length) * ahead
        yield from _curve(start, half, across)
        yield from _curve(start + half, along - half, across)
    else:  # aside for half a length, ahead at full length, back for the other half
        half, turn = length // 2 * ahead, _even_half(width) * aside
        yield from _curve(start, turn, half)
        yield from _curve(start + turn, along, across - turn)
        yield from _curve(start + along - ahead + turn - aside, -turn, half - along)


def _even_half(n: int) -> int:
    """Half of n, rounded down; one more if that is odd, so that the curve closes on itself."""
    half = n // 2
    return half + 1 if half % 2 and n > 2 else half

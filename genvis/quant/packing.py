"""b-bit codes as a stream of bytes, with no bit wasted between codes.

Bit k of the stream is bit k % 8 of byte k // 8; code i takes bits b i to b i + b - 1, lowest first.
Eight codes fill b bytes exactly, so the work is done on 64-bit words that hold eight codes each.
"""

import torch
from torch import Tensor
from torch.nn import functional


def packed_bytes(count: int, bits: int) -> int:
    """The length of the stream of `count` codes: ceil(count * bits / 8)."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """The stream (packed_bytes,) uint8 of codes in [0, 2**bits), of any shape, row-major."""
    _check_bits(bits)
    if codes.numel() and not (codes.min() >= 0 and codes.max() < 2**bits):
        raise ValueError(
            f"codes must be in [0, {2**bits}) for {bits} bits, got {codes.min()}..{codes.max()}"
        )
    flat = codes.flatten().to(torch.int64)
    eights = functional.pad(flat, (0, -len(flat) % 8)).unflatten(0, (-1, 8))  # (W, 8)
    words = torch.zeros(len(eights), dtype=torch.int64, device=codes.device)
    for i in range(8):
        words |= eights[:, i] << (bits * i)
    stream = torch.stack([(words >> (8 * j)) & 0xFF for j in range(bits)], 1)  # (W, bits)
    return stream.to(torch.uint8).flatten()[: packed_bytes(len(flat), bits)].clone()


def unpack(stream: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes, (count,) uint8, that `pack` made the stream (packed_bytes,) from."""
    _check_bits(bits)
    if stream.shape != (packed_bytes(count, bits),):
        raise ValueError(
            f"{count} codes of {bits} bits are ({packed_bytes(count, bits)},) bytes, "
            f"got {tuple(stream.shape)}"
        )
    rows = functional.pad(stream, (0, -len(stream) % bits)).unflatten(0, (-1, bits))  # (W, bits)
    words = torch.zeros(len(rows), dtype=torch.int64, device=stream.device)
    for j in range(bits):
        words |= rows[:, j].to(torch.int64) << (8 * j)
    codes = [((words >> (bits * i)) & (2**bits - 1)).to(torch.uint8) for i in range(8)]
    return torch.stack(codes, 1).flatten()[:count]  # (W, 8)


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be in 2..8, got {bits}")

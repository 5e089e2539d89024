"""Scan orders: permutations of any grid, undone exactly, and as continuous as they claim."""

import pytest
import torch

from genvis.backbones.dim import DiMConfig
from genvis.nn.mamba import InOrder
from genvis.nn.scan_orders import SCAN_ORDERS, inverse, local, scan_orders
from genvis.types import Cond

GRIDS = [(1, 1), (1, 5), (4, 4), (3, 5), (8, 6), (7, 7), (5, 12)]
COUNTS = {"raster": 1, "bidirectional": 2, "cross": 4, "local": 4}  # the others have eight


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", SCAN_ORDERS)
def test_every_order_visits_each_token_once_and_can_be_undone(
    name: str, grid: tuple[int, int]
) -> None:
    orders, tokens = scan_orders(name, *grid), torch.arange(grid[0] * grid[1])
    assert orders.shape == (COUNTS.get(name, 8), len(tokens))
    for order, undo in zip(orders, inverse(orders), strict=True):
        assert torch.equal(order.sort().values, tokens)
        assert torch.equal(tokens[order][undo], tokens)


@pytest.mark.parametrize("name", sorted(SCAN_ORDERS.keys() - {"local"}))
def test_the_orders_of_a_grid_are_different(name: str) -> None:
    orders = scan_orders(name, 4, 4).tolist()
    assert len({tuple(order) for order in orders}) == len(orders)


def steps(name: str, h: int, w: int) -> torch.Tensor:
    """Manhattan lengths of all steps of all orders."""
    orders = scan_orders(name, h, w)
    rows, columns = orders // w, orders % w
    return rows.diff().abs() + columns.diff().abs()


@pytest.mark.parametrize("grid", GRIDS)
def test_zigzag_steps_to_a_neighbour(grid: tuple[int, int]) -> None:
    assert (steps("zigzag", *grid) == 1).all()


@pytest.mark.parametrize("grid", [(4, 4), (8, 6), (6, 14), (7, 7), (3, 5), (5, 12), (4, 9)])
def test_hilbert_steps_to_a_neighbour_but_for_one_diagonal(grid: tuple[int, int]) -> None:
    lengths = steps("hilbert", *grid)
    assert (lengths <= 2).all()
    assert ((lengths == 2).sum(1) <= (sum(grid) % 2)).all()


def test_hilbert_stays_closer_than_zigzag() -> None:
    """Tokens at most eight steps apart on the curve: the reason to prefer it."""
    spread = {}
    for name in ("hilbert", "zigzag"):
        order = scan_orders(name, 16, 16)[0]
        at = torch.stack([order // 16, order % 16]).float()
        spread[name] = (at[:, 8:] - at[:, :-8]).norm(dim=0).mean()
    assert spread["hilbert"] < 0.7 * spread["zigzag"]


def test_cross_goes_along_lines_and_columns_both_ways() -> None:
    there, down, back, up = scan_orders("cross", 2, 3).tolist()
    assert there == [0, 1, 2, 3, 4, 5]
    assert down == [0, 3, 1, 4, 2, 5]
    assert (back, up) == (there[::-1], down[::-1])


def test_windows_that_do_not_divide_the_grid_are_cut() -> None:
    assert local(2, 3, window=2)[0].tolist() == [0, 1, 3, 4, 2, 5]
    assert local(3, 3, window=3)[0].tolist() == list(range(9))


def test_an_unknown_order_is_named() -> None:
    with pytest.raises(ValueError, match="scan must be one of raster"):
        scan_orders("spiral", 4, 4)
    with pytest.raises(ValueError, match="scan must be one of raster"):
        DiMConfig(scan="spiral")


def test_without_mixing_the_order_does_not_matter() -> None:
    torch.manual_seed(0)
    x, t, cond = torch.randn(2, 4, 4, 8), torch.tensor([1.0, 900.0]), Cond(label=torch.arange(2))
    outputs = []
    for scan in SCAN_ORDERS:
        torch.manual_seed(1)
        net = DiMConfig(
            size=(4, 8), width=32, depth=4, heads=4, state=4, head=16, num_classes=3, scan=scan
        ).build()
        for part in net.modules():
            if isinstance(part, InOrder):
                part.mixer = torch.nn.Identity()
        for name, parameter in net.named_parameters():
            torch.manual_seed(sum(name.encode()))
            torch.nn.init.normal_(parameter, std=0.1)
        outputs.append(net(x, t, cond))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    assert outputs[0].abs().max() > 0.01


def test_scanning_layers_take_turns_between_attentions() -> None:
    net = DiMConfig(size=(4, 8), width=32, depth=8, heads=4, state=4, head=16, scan="cross").build()
    orders = scan_orders("cross", 2, 4)
    scans = [block.mixer for block in net.blocks if isinstance(block.mixer, InOrder)]
    kinds = [isinstance(block.mixer, InOrder) for block in net.blocks]
    assert kinds == [True, True, True, False] * 2
    for i, scan in enumerate(scans):
        assert torch.equal(scan.order, orders[i % 4])


def test_a_fresh_network_puts_out_zero_and_its_blocks_are_the_identity() -> None:
    net = DiMConfig(size=8, width=32, depth=4, heads=4, state=4, head=16, num_classes=3).build()
    x, cond = torch.randn(2, 4, 8, 8), Cond(label=torch.arange(2))
    assert net(x, torch.tensor([10.0, 500.0]), cond).abs().max() == 0
    tokens = torch.randn(2, 16, 32)
    for block in net.blocks:
        assert torch.equal(block(tokens, torch.randn(2, 32)), tokens)

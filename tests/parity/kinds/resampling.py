"""Resampling schemes with given uniforms, the thresholded rule, and neighbours of a noise."""

import torch
from golden_case import Case
from torch import Tensor

from genvis.search.resampling import RULES, ess, log_mean, ordered
from genvis.search.selections import Resample
from genvis.search.zero_order import neighbours

CLOSE = (1e-10, 1e-10)
EXACT = (0.0, 0.0)
UNIFORMS = {
    "systematic": "u_systematic",
    "stratified": "u_stratified",
    "multinomial": "u_spacings",
    "residual": "u_residual",
    "ssp": "u_ssp",
}


class Given:
    """Keys that hand out recorded uniforms."""

    def __init__(self, u: Tensor) -> None:
        self.u = u

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return self.u.view(-1, *shape)


def check(case: Case) -> None:
    given = case.tensors("in/")
    if "pivot" in given:
        cosine = case.spec["config"]["threshold"]
        moves = given["gauss"].view(*given["gauss"].shape[:2], *given["pivot"].shape[1:])
        case.compare("neighbors", neighbours(given["pivot"], moves, cosine))
    elif "log_w" in given:
        schemes(case, given)
    else:
        case.unclaimed("neither weights nor a pivot")


def schemes(case: Case, given: dict[str, Tensor]) -> None:
    log_w = given["log_w"].double()
    n, w = log_w.shape[1], log_w.softmax(1)
    case.compare("log_w_norm", log_w.log_softmax(1), tolerance=CLOSE)
    case.compare("ess", ess(log_w), tolerance=CLOSE)
    case.compare("log_mean_w", log_mean(log_w), tolerance=CLOSE)
    sums = ordered(given["u_spacings"])
    torch.testing.assert_close(sums, given["u_sorted"], atol=1e-10, rtol=0)
    for name, uniforms in UNIFORMS.items():
        parents = RULES[name].parents(w, given[uniforms].view(len(w), -1), n)  # type: ignore[index]
        case.compare(name, recorded(parents, w) if name == "residual" else parents, tolerance=EXACT)
    for name in sorted(case.expected):
        if name.startswith("thr") and name.endswith("_index"):
            thresholded(case, name.removesuffix("_index"), log_w, given["u_systematic"])


def recorded(parents: Tensor, w: Tensor) -> Tensor:
    """The released code never draws an index above the number that it has to draw: a slip that is
    put into our residual draws here, and nowhere else.
    """
    n = w.shape[1]
    certain = (n * w).floor().sum(1, keepdim=True)
    drawn = torch.arange(n) >= certain
    return torch.where(drawn, torch.minimum(parents, n - certain.long() - 1), parents)


def thresholded(case: Case, prefix: str, log_w: Tensor, u: Tensor) -> None:
    """Systematic below the threshold; the engine's weights are unnormalised, 0 after resampling."""
    n, select = log_w.shape[1], Resample(threshold=float(prefix.removeprefix("thr")))
    choice = select(log_w, log_w, n, 1, Given(u))  # type: ignore[arg-type]
    acted = (choice.log_w == 0).all(1)
    case.compare(f"{prefix}_index", choice.rows, tolerance=EXACT)
    case.compare(f"{prefix}_resampled", acted.int(), tolerance=EXACT)
    after = choice.log_w.log_softmax(1)
    after = torch.where(acted[:, None], after.float().double(), after)  # so are those recorded
    case.compare(f"{prefix}_log_w", after, tolerance=CLOSE)
    torch.testing.assert_close(choice.log_z, torch.where(acted, log_mean(log_w), 0.0))

"""The Frechet distance's hard part, Tr (S1 S2)^(1/2), against SciPy's square root of the product.

Example: OMP_NUM_THREADS=1 python benchmarks/frechet.py --dim 2048
Both are compared with what is known: S2 = T S1 T for a positive definite T has trace Tr(T S1); of
fewer rows than features, the singular values of the centred features themselves.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("--dim", type=int, default=2048, help="features")
    parser.add_argument("--rows", type=int, default=1000, help="images in the rank-deficient case")
    parser.add_argument("--repeats", type=int, default=3, help="the shortest time counts")
    args = parser.parse_args()

    import json
    import time
    from collections.abc import Callable

    import scipy.linalg
    import torch
    from torch import Tensor

    from genvis.evaluation.frechet import trace_sqrt
    from genvis.evaluation.statistics import Statistics
    from genvis.random import HashKeys

    def timed(work: Callable[[], float]) -> tuple[float, float]:
        """The value, and the shortest of the repeats: others may use the machine too."""
        times = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            value = work()
            times.append(time.perf_counter() - start)
        return value, min(times)

    def features(seed: int, n: int) -> Tensor:
        """Variances from 1 down to 1e-4, along random directions."""
        scale = torch.logspace(0, -2, args.dim).double()
        turn = torch.linalg.qr(HashKeys.of(seed + 7, range(args.dim)).normal((args.dim,))).Q
        return HashKeys.of(seed, range(n)).normal((args.dim,)).double() * scale @ turn.double()

    def report(case: str, s1: Tensor, s2: Tensor, known: float) -> None:
        ours, quick = timed(lambda: float(trace_sqrt(s1, s2)))
        theirs, slow = timed(lambda: float(scipy.linalg.sqrtm((s1 @ s2).numpy()).real.trace()))
        found = {
            "case": case,
            "seconds": round(quick, 2),
            "scipy_seconds": round(slow, 2),
            "times_faster": round(slow / quick, 1),
            "relative_error": abs(ours - known) / known,
            "scipy_relative_error": abs(theirs - known) / known,
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(found), flush=True)

    warm = torch.eye(64).double()
    trace_sqrt(warm, warm)
    s1 = Statistics.of(features(1, 4 * args.dim)).covariance
    root = features(2, args.dim)
    transport = root.mT @ root / args.dim**0.5 + torch.eye(args.dim).double()
    moved = transport @ s1 @ transport
    report("full rank", s1, (moved + moved.mT) / 2, float((transport * s1).sum()))
    a, b = (features(seed, args.rows) for seed in (3, 4))
    centred = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b)]
    known = float(torch.linalg.svdvals(centred[0] @ centred[1].mT).sum())
    sets = [Statistics.of(x).covariance for x in (a, b)]
    report(f"{args.rows} rows", *sets, known)


if __name__ == "__main__":
    console.run(main)

"""Time of the scans against sequence length: chunked against sequential, and against attention.

Example: python benchmarks/scan.py device=cuda dtype=bf16 batch=16 'lengths=[1024,4096,16384]'
"""

import argparse

from genvis import console


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="width, lengths, device, ...")
    args = parser.parse_args()

    import json
    import math
    import statistics
    import time
    from collections.abc import Callable
    from typing import Literal

    import torch
    from torch import Tensor

    from genvis.config import build, config, dump, override
    from genvis.kernels.attention import attention
    from genvis.kernels.scan import selective_scan, ssd_scan
    from genvis.random import HashKeys

    @config
    class Benchmark:
        lengths: tuple[int, ...] = (256, 1024, 4096)
        batch: int = 1
        width: int = 384  # of the network: scans have twice as many channels
        head: int = 64
        mamba_state: int = 16
        mamba2_state: int = 64
        repeats: int = 5
        device: str = "cpu"
        dtype: Literal["fp32", "bf16"] = "fp32"

    plan = build(Benchmark, override({}, args.overrides))
    dtype = torch.bfloat16 if plan.dtype == "bf16" else torch.float32
    keys, inner = HashKeys.of(0, range(plan.batch), plan.device), 2 * plan.width

    def normal(*shape: int) -> Tensor:
        return keys.normal(shape).to(dtype)

    def mamba(n: int) -> tuple[Tensor, ...]:
        s = plan.mamba_state
        decays = -torch.arange(1.0, s + 1, device=plan.device).repeat(inner, 1)
        dt = 0.1 * keys.uniform((n, inner)).float()
        return normal(n, inner), dt, decays, normal(n, 1, s), normal(n, 1, s)

    def mamba2(n: int) -> tuple[Tensor, ...]:
        s, h = plan.mamba2_state, inner // plan.head
        decays, dt = -torch.linspace(1, 16, h, device=plan.device), 0.1 * keys.uniform((n, h))
        return normal(n, h, plan.head), dt.float(), decays, normal(n, 1, s), normal(n, 1, s)

    def tokens(n: int) -> tuple[Tensor, ...]:
        return tuple(normal(plan.width // plan.head, n, plan.head) for _ in range(3))

    operations: dict[str, tuple[Callable[..., Tensor], Callable[[int], tuple[Tensor, ...]]]] = {
        "mamba_sequential": (lambda *v: selective_scan(*v, backend="reference")[0], mamba),
        "mamba_chunked": (lambda *v: selective_scan(*v, backend="chunked")[0], mamba),
        "mamba2_sequential": (lambda *v: ssd_scan(*v, backend="reference")[0], mamba2),
        "mamba2_chunked": (lambda *v: ssd_scan(*v, backend="chunked")[0], mamba2),
        "attention": (attention, tokens),
    }

    def milliseconds(work: Callable[[], object]) -> float:
        """The median over repeats, after one that warms up."""
        times = []
        for _ in range(plan.repeats + 1):
            start = time.perf_counter()
            work()
            if plan.device != "cpu":
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times[1:])

    def exponent(times: list[float]) -> float:
        """Slope of log time over log length."""
        xs = [math.log(n) for n in plan.lengths]
        return statistics.linear_regression(xs, [math.log(t) for t in times]).slope

    for name, (operation, make) in operations.items():
        forward, both = [], []
        for n in plan.lengths:
            given = tuple(value.requires_grad_() for value in make(n))
            with torch.no_grad():
                forward.append(milliseconds(lambda: operation(*given)))  # noqa: B023
            both.append(
                milliseconds(lambda: torch.autograd.grad(operation(*given).sum(), given))  # noqa: B023
            )
        found = {
            "operation": name,
            "forward_ms": [round(t, 2) for t in forward],
            "forward_backward_ms": [round(t, 2) for t in both],
            "exponents": [round(exponent(times), 2) for times in (forward, both)],
        }
        print(json.dumps(found), flush=True)
    print(
        json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, **dump(plan)})
    )


if __name__ == "__main__":
    console.run(main)

"""Images per second of a backbone, forward and in a training step, and of per-row random keys.

Example: python benchmarks/throughput.py backbone.name=dit_b_2 device=cuda dtype=bf16 compile=true
"""

import argparse

from genvis import console


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="a.b=c", help="backbone, batch, device, ..."
    )
    args = parser.parse_args()

    import json
    import statistics
    import time
    from collections.abc import Callable
    from typing import Annotated, Any, Literal

    import torch

    from genvis.backbones import BACKBONES
    from genvis.config import build, config, dump, override
    from genvis.random import HashKeys
    from genvis.types import BackboneConfig, Cond

    @config
    class Benchmark:
        backbone: Annotated[BackboneConfig, BACKBONES]
        batch: int = 64
        repeats: int = 10
        device: str = "cpu"
        dtype: Literal["fp32", "bf16"] = "fp32"
        compile: bool = False

    plan = build(Benchmark, override({"backbone": {"name": "dit_s_2"}}, args.overrides))
    dtype = torch.bfloat16 if plan.dtype == "bf16" else torch.float32
    net: Any = plan.backbone.build().to(plan.device, dtype)
    if plan.compile:
        net = torch.compile(net)
    keys = HashKeys.of(0, range(plan.batch), plan.device)
    x = keys.normal(plan.backbone.shape).to(dtype)
    t, cond = keys.uniform().float(), Cond(label=torch.zeros(plan.batch, device=plan.device).long())

    def rate(work: Callable[[], object]) -> float:
        """The median over repeats, after two that warm up."""
        times = []
        for _ in range(plan.repeats + 2):
            start = time.perf_counter()
            work()
            if plan.device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return plan.batch / statistics.median(times[2:])

    with torch.no_grad():
        forward = rate(lambda: net(x, t, cond))
    step = rate(lambda: net(x, t, cond).square().mean().backward())
    normals = rate(lambda: keys.normal(plan.backbone.shape))
    found = {"forward": forward, "forward_backward": step, "keys_normal": normals}
    rates = {f"{name}_images_per_s": round(value, 1) for name, value in found.items()}
    print(
        json.dumps(
            {**rates, "threads": torch.get_num_threads(), "torch": torch.__version__, **dump(plan)}
        )
    )


if __name__ == "__main__":
    console.run(main)

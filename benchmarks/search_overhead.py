"""What a search takes besides network and verifier: the engine against a loop of the same calls.

Example: OMP_NUM_THREADS=1 python benchmarks/search_overhead.py n=8 steps=4 repeats=5
The bare loop makes the same images and previews in the same batches, and neither counts, weighs,
selects nor forks. Weights are random; the verifier, brightness, costs nothing that could hide the
rest. `ratio` is engine over bare loop, in turns, on CPUs of processor time; where that drowns in
the noise of the machine, `share` does not: the difference of the two with a network that costs
nothing either, over the bare loop's time with the real one.
"""

import argparse

from genvis import console


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="backbone, n, steps, ...")
    args = parser.parse_args()

    import json
    import statistics
    import time
    from collections.abc import Callable
    from dataclasses import dataclass, replace
    from typing import Annotated, Any, Literal

    import torch
    from torch import Tensor

    from genvis.backbones import BACKBONES
    from genvis.config import build, config, dump, override
    from genvis.random import HashKeys
    from genvis.samplers.generate import labelled, run
    from genvis.samplers.generator import GeneratorConfig
    from genvis.search import SEARCHES
    from genvis.search.ledger import Ledger
    from genvis.types import BackboneConfig, Cond, Sampler, repeat, to

    @config
    class Benchmark:
        backbone: Annotated[BackboneConfig, BACKBONES]
        methods: tuple[Literal["best_of_n", "smc"], ...] = ("best_of_n", "smc")
        n: int = 8  # candidates, or particles
        steps: int = 4
        repeats: int = 5
        device: str = "cpu"

    network = {"name": "dit_s_2", "channels": 3, "learned_variance": False}
    plan = build(Benchmark, override({"backbone": network}, args.overrides))
    parts = {
        "backbone": BACKBONES.dump(plan.backbone),
        "process": {"name": "linear"},
        "prediction": {"name": "velocity"},
        "tokenizer": {"name": "pixels", "channels": 3},
        "sampler": {"solver": {"name": "ddim", "eta": 1.0}, "steps": plan.steps},
    }
    generator = build(GeneratorConfig, parts).build().to(plan.device)
    for parameter in generator.net.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    generator.net.eval().requires_grad_(False)

    class Nothing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.zero = torch.nn.Parameter(torch.zeros((), device=plan.device), False)

        def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return self.zero.expand(x.shape)

    real, free = generator.sampler(), replace(generator, net=Nothing()).sampler()
    cond, keys = labelled(plan.backbone.num_classes, range(1)), HashKeys.of(0, [0])

    @dataclass(frozen=True)
    class Brightness:
        name: str = "brightness"

        def __call__(self, images: Tensor, cond: Cond) -> Tensor:
            return images.mean((1, 2, 3))

    verifier = Brightness()

    def start(sampler: Sampler[Any]) -> tuple[Tensor, Cond, HashKeys]:
        own = keys.split(plan.n)
        noise = own.normal(sampler.noise_shape)
        return *to((noise, repeat(cond, plan.n)), sampler.device), own

    def whole(sampler: Sampler[Any]) -> object:
        return verifier(run(sampler, *start(sampler)), cond)

    def stepwise(sampler: Sampler[Any]) -> object:
        state, scores = sampler.init(*start(sampler)), []
        for _ in range(plan.steps):
            state = sampler.look(sampler.step(state))
            scores.append(verifier(sampler.preview(state), cond))
        return scores

    def engine(name: str) -> Callable[[Sampler[Any]], object]:
        search = SEARCHES.build({"name": name, "n": plan.n, "chunk": plan.n})
        return lambda sampler: search(sampler, cond, verifier, keys, Ledger())

    def seconds(work: Callable[[Sampler[Any]], object], sampler: Sampler[Any]) -> float:
        clock = time.process_time if plan.device == "cpu" else time.perf_counter
        begin = clock()
        with torch.no_grad():
            work(sampler)
        if plan.device != "cpu":
            torch.cuda.synchronize()
        return clock() - begin

    def beside(
        ours: Callable[..., object], bare: Callable[..., object], by: Sampler[Any], n: int
    ) -> list[tuple[float, float]]:
        """Seconds of both, which take turns to be first; after one that warms up."""
        found = []
        for i in range(n + 1):
            order = (ours, bare) if i % 2 else (bare, ours)
            times = {work: seconds(work, by) for work in order}
            found.append((times[ours], times[bare]))
        return found[1:]

    loops = {"best_of_n": whole, "smc": stepwise}
    for name in plan.methods:
        bare = loops[name]
        pairs = beside(engine(name), bare, real, plan.repeats)
        alone = beside(engine(name), bare, free, 20 * plan.repeats)
        extra = statistics.median(a - b for a, b in alone)
        base = statistics.median(b for _, b in pairs)
        found = {
            "method": name,
            "share": round(extra / base, 5),
            "extra_ms": round(1000 * extra, 2),
            "bare_ms": round(1000 * base, 1),
            "ratio": round(statistics.median(a / b for a, b in pairs), 4),
            "ratios": [round(a / b, 4) for a, b in pairs],
        }
        print(json.dumps(found), flush=True)
    print(
        json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, **dump(plan)})
    )


if __name__ == "__main__":
    console.run(main)

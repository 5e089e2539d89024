"""What a search takes besides network and verifier: the engine against a loop of the same calls.

Example: OMP_NUM_THREADS=1 python benchmarks/search_overhead.py n=8 steps=4 repeats=5
The bare loop makes the same images and previews in the same batches, and neither counts, weighs,
selects nor forks. Weights are random; the verifier, brightness, costs nothing that could hide the
rest. Both take turns, since others may use the machine too; on CPUs processor time is compared.
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
    from dataclasses import dataclass
    from typing import Annotated, Any

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
    generator = build(GeneratorConfig, parts).build()
    for parameter in generator.net.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    generator.net.eval().requires_grad_(False)
    sampler: Sampler[Any] = generator.to(plan.device).sampler()
    cond, keys = labelled(plan.backbone.num_classes, range(1)), HashKeys.of(0, [0])

    @dataclass(frozen=True)
    class Brightness:
        name: str = "brightness"

        def __call__(self, images: Tensor, cond: Cond) -> Tensor:
            return images.mean((1, 2, 3))

    verifier = Brightness()

    def start() -> tuple[Tensor, Cond, HashKeys]:
        own = keys.split(plan.n)
        noise = own.normal(sampler.noise_shape)
        return *to((noise, repeat(cond, plan.n)), sampler.device), own

    def whole() -> object:
        return verifier(run(sampler, *start()), cond)

    def stepwise() -> object:
        state, scores = sampler.init(*start()), []
        for _ in range(plan.steps):
            state = sampler.look(sampler.step(state))
            scores.append(verifier(sampler.preview(state), cond))
        return scores

    def engine(name: str, **fields: Any) -> Callable[[], object]:
        search = SEARCHES.build({"name": name, "n": plan.n, "chunk": plan.n, **fields})
        return lambda: search(sampler, cond, verifier, keys, Ledger())

    def seconds(work: Callable[[], object]) -> float:
        clock = time.process_time if plan.device == "cpu" else time.perf_counter
        begin = clock()
        with torch.no_grad():
            work()
        if plan.device != "cpu":
            torch.cuda.synchronize()
        return clock() - begin

    methods = {"best_of_n": (engine("best_of_n"), whole), "smc": (engine("smc"), stepwise)}
    for name, (ours, bare) in methods.items():
        pairs = [(seconds(ours), seconds(bare)) for _ in range(plan.repeats + 1)][1:]
        ratios = [a / b for a, b in pairs]
        found = {
            "method": name,
            "ratio": round(statistics.median(ratios), 4),
            "ratios": [round(ratio, 4) for ratio in ratios],
            "seconds": round(statistics.median(a for a, _ in pairs), 3),
            "bare_seconds": round(statistics.median(b for _, b in pairs), 3),
        }
        print(json.dumps(found), flush=True)
    print(
        json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, **dump(plan)})
    )


if __name__ == "__main__":
    console.run(main)

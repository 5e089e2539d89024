"""Next-scale sampling at given sizes, random weights: images a second, bytes of weights and caches.

Example: python benchmarks/next_scale.py device=cuda dtype=bf16 batch=64 compile=true sides=[256] \\
  'models=[{name: var_d30}, {name: var_d16}, {name: mvar_d16}]' 'drafter={name: var_d30}' \\
  'refiner={name: var_d16}' draft_steps=[6,7,8,9] --out next_scale.json
A line for every side of the images and every model, and for the drafter and refiner at every number
of scales drafted; speeds are also given as ratios to the first line of their side. Guidance, top-k
and top-p are on, as published; without decode=true no pixels are made, as in CoDe's tables.
Caches are what a state keeps for the next scale: `cache_bytes` of the largest, `cache_peak_bytes`
with the one that it is made from. Device peaks are of one batch, weights included; null on CPUs.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_overrides(parser, "models, sides, draft_steps, device, ...")
    parser.add_argument("--out", help="a JSON file for the plan and the lines")
    args = parser.parse_intermixed_args()

    import json
    import statistics
    import time
    from collections.abc import Iterator
    from dataclasses import fields, is_dataclass, replace
    from itertools import pairwise
    from typing import Annotated, Any, Literal

    import torch
    from torch import Tensor, nn

    from genvis.backbones import SCALE_BACKBONES
    from genvis.backbones.scales import SCALES_256, SCALES_512, SCALES_1024
    from genvis.checkpoint import atomic_write
    from genvis.config import build, config, dump, override
    from genvis.random import HashKeys
    from genvis.samplers.collaborative import Collaborative
    from genvis.samplers.decoding import Decoding
    from genvis.samplers.generate import labelled, price
    from genvis.samplers.guided_scales import ScaleGuidance
    from genvis.samplers.next_scale import NextScaleConfig
    from genvis.samplers.scale_generator import ScaleGenerator, ScaleGeneratorConfig
    from genvis.tokenizers.conv import ConvConfig
    from genvis.tokenizers.multi_scale_vq import MultiScaleVQConfig
    from genvis.tokenizers.quantizers.multi_scale import MultiScaleConfig
    from genvis.types import Sampler, ScaleBackboneConfig, to

    schedules = {256: SCALES_256, 512: SCALES_512, 1024: SCALES_1024}
    small = {"width": 64, "depth": 1, "heads": 1}

    @config
    class Benchmark:
        models: tuple[Annotated[ScaleBackboneConfig, SCALE_BACKBONES], ...]
        drafter: Annotated[ScaleBackboneConfig, SCALE_BACKBONES]
        refiner: Annotated[ScaleBackboneConfig, SCALE_BACKBONES]
        draft_steps: tuple[int, ...] = (8,)  # none: no collaboration
        # of the images, in pixels; null: the models' own scales
        sides: tuple[Literal[256, 512, 1024] | None, ...] = (256,)
        batch: int = 1
        repeats: int = 3
        device: str = "cpu"
        dtype: Literal["fp32", "bf16"] = "fp32"
        compile: bool = False  # every block, once for all scales
        decode: bool = False

    suggested = {
        "models": [{"name": "var", **small}, {"name": "mvar", **small}],
        "drafter": {"name": "var", **small, "depth": 2},
        "refiner": {"name": "var", **small},
    }
    plan = build(Benchmark, override(suggested, args.overrides))
    sampling = NextScaleConfig(
        guidance=ScaleGuidance(scale=2.5),
        decoding=Decoding(top_k=900, top_p=0.96),  # of 4,096 codes; all, where there are fewer
        precision=plan.dtype,
    )

    def generator(backbone: Any, side: int | None) -> ScaleGenerator:
        """The backbone at the schedule of a side, on the device."""
        scales = schedules.get(side, backbone.scales)
        backbone = replace(backbone, scales=scales)
        codes = MultiScaleConfig(codes=backbone.codes, width=backbone.code_width, scales=scales)
        nets = ConvConfig() if plan.decode else ConvConfig(width=32, multipliers=(1,), blocks=1)
        tokenizer = MultiScaleVQConfig(nets=nets, quantizer=codes)
        with torch.device(plan.device):
            made = ScaleGeneratorConfig(backbone=backbone, tokenizer=tokenizer).build()
        made.tokenizer.eval().requires_grad_(False)
        made.net.eval().requires_grad_(False)
        if plan.dtype == "bf16":  # what autocast would make of them at every call
            for layer in made.net.modules():
                if isinstance(layer, nn.Linear):
                    layer.bfloat16()
        for block in made.net.blocks if plan.compile else ():
            block.compile(dynamic=True)
        return made

    def weights(*generators: ScaleGenerator) -> int:
        return sum(p.nbytes for each in generators for p in each.net.parameters())

    def leaves(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        parts = value if isinstance(value, tuple) else ()
        if is_dataclass(value):
            parts = tuple(getattr(value, field.name) for field in fields(value))
        for part in parts:
            yield from leaves(part)

    def held(*memories: Any) -> int:
        """Bytes that stay alive because of them."""
        storages = [leaf.untyped_storage() for leaf in leaves(memories)]
        return sum({part.data_ptr(): part.nbytes() for part in storages}.values())

    cuda = plan.device.startswith("cuda")

    @torch.no_grad()
    def measured(sampler: Sampler[Any], classes: int) -> dict[str, Any]:
        keys = HashKeys.of(0, range(plan.batch), plan.device)
        cond = to(labelled(classes, range(plan.batch)), plan.device)

        def sample() -> None:
            state = sampler.init(keys.normal(sampler.noise_shape), cond, keys)
            for _ in range(sampler.num_steps):
                state = sampler.step(state)
            if plan.decode:
                sampler.preview(state)
            if cuda:
                torch.cuda.synchronize()

        state, memories = sampler.init(keys.normal(sampler.noise_shape), cond, keys), [None]
        for _ in range(sampler.num_steps):
            looked = sampler.look(state)
            state = sampler.step(looked)
            memories += [looked.memory, state.memory]
        caches = [held(memory) for memory in memories]
        pairs = [held(*both) for both in pairwise(memories)]
        del state, looked, memories
        sample()  # compiles what is left to compile
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(plan.repeats):
            start = time.perf_counter()
            sample()
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        return {
            "images_per_s": round(plan.batch / seconds, 3),
            "seconds": round(seconds, 4),
            "tokens_per_image": price(sampler).tokens,
            "cache_bytes": max(caches),
            "cache_peak_bytes": max(pairs),
            "device_peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        }

    lines: list[dict[str, Any]] = []

    def report(side: int | None, name: str, size: int, found: dict[str, Any]) -> None:
        first = next((line for line in lines if line["side"] == side), found)
        ratio = round(found["images_per_s"] / first["images_per_s"], 3)
        named = {"side": side, "model": name, "batch": plan.batch, "weight_bytes": size}
        lines.append({**named, **found, "ratio": ratio})
        print(json.dumps(lines[-1]), flush=True)

    for side in plan.sides:
        for backbone in plan.models:
            one = generator(backbone, side)
            found = measured(sampling.build(one), backbone.num_classes)
            report(side, title(backbone), weights(one), found)
            del one
        if plan.draft_steps:
            large, little = (generator(each, side) for each in (plan.drafter, plan.refiner))
            little = replace(little, tokenizer=large.tokenizer)
            drafting, refining = sampling.build(large), sampling.build(little)
            for steps in plan.draft_steps:
                both = Collaborative(drafting, refining, steps)
                name = f"{title(plan.drafter)} + {title(plan.refiner)}, {steps} drafted"
                found = measured(both, plan.drafter.num_classes)
                report(side, name, weights(large, little), found)
            del large, little, drafting, refining, both
    about = {"threads": torch.get_num_threads(), "torch": torch.__version__, **dump(plan)}
    print(json.dumps(about))
    if args.out:
        atomic_write(args.out, json.dumps({**about, "lines": lines}, indent=2) + "\n")


def title(backbone: object) -> str:
    """The shortest name of a network and its depth, such as var_d16."""
    depth = getattr(backbone, "depth", "")
    return f"{type(backbone).__name__.removesuffix('Config').lower()}_d{depth}"


if __name__ == "__main__":
    console.run(main)

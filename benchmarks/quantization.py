"""Bytes and milliseconds of a backbone under a plan, by back-end; random weights.

Examples:
  OMP_NUM_THREADS=1 python benchmarks/quantization.py 'backbone={name: dit_s_2, depth: 2}'
  python benchmarks/quantization.py backbone.name=dit_xl_2 plan=configs/quant/w8a8.yaml \\
         'backends=[torchao,fake]' batch=32 device=cuda dtype=bf16 compile=true
  python benchmarks/quantization.py scale_backbone.name=var_d16 plan=configs/quant/w4a16.yaml \\
         'backends=[int4,torchao,fake]' batch=8 device=cuda dtype=bf16
A row for full precision first. `share` is the part of the quantized weights that low-bit kernels
multiply, `difference` the largest one from fake quantization beside the largest output.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_overrides(parser, "backbone, plan, backends, batch, device, dtype, compile")
    args = parser.parse_args()

    import json
    import math
    import statistics
    import tempfile
    import time
    from pathlib import Path
    from typing import Annotated, Any, Literal

    import torch
    from torch import nn

    from genvis.backbones import BACKBONES, SCALE_BACKBONES
    from genvis.checkpoint import save_tensors
    from genvis.config import build, config, load, override
    from genvis.quant.execution import Difference, Execution, lines, tensor_bytes
    from genvis.quant.plan import Plan
    from genvis.quant.products import products
    from genvis.random import HashKeys
    from genvis.types import Cond

    @config
    class Benchmark:
        backbone: Annotated[Any, BACKBONES] | None = None
        scale_backbone: Annotated[Any, SCALE_BACKBONES] | None = None
        plan: str = "configs/quant/w8a8.yaml"
        backends: tuple[str, ...] = ("int8", "fake")
        batch: int = 4
        repeats: int = 5
        device: str = "cpu"
        dtype: Literal["fp32", "bf16"] = "fp32"
        compile: bool = False

    plan = build(Benchmark, override({}, args.overrides))
    dtype = torch.bfloat16 if plan.dtype == "bf16" else torch.float32
    chosen: Any = plan.backbone or plan.scale_backbone or BACKBONES.build("dit_s_2")
    torch.manual_seed(0)
    net = chosen.build().eval().requires_grad_(False)
    for parameter in net.parameters():  # no layer stays at zero
        parameter.add_(0.02 * torch.randn_like(parameter))
    net = net.to(plan.device, dtype)
    keys = HashKeys.of(0, range(plan.batch), plan.device)
    label = Cond(label=torch.zeros(plan.batch, device=plan.device).long())
    if plan.scale_backbone is None:
        given: tuple[Any, ...] = (
            keys.normal(chosen.shape).to(dtype),
            keys.uniform().float(),
            label,
        )
    else:
        tokens = sum(side**2 for side in chosen.scales[1:])
        given = (keys.normal((tokens, chosen.code_width)).to(dtype), label)

    def milliseconds(work: nn.Module) -> float:
        """The median over repeats, after two that warm up."""
        times = []
        for _ in range(plan.repeats + 2):
            start = time.perf_counter()
            work(*given)
            if plan.device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return 1000 * statistics.median(times[2:])

    def run(work: nn.Module) -> float:
        return milliseconds(torch.compile(work) if plan.compile else work)

    def on_disk(work: nn.Module) -> int:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.safetensors")
            save_tensors(path, work.state_dict())
            return path.stat().st_size

    with torch.no_grad():
        numbers = sum(p.numel() for p in net.parameters())
        common = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        common |= {"dtype": plan.dtype, "compile": plan.compile, "batch": plan.batch}
        full = {"run": "full precision", "ms": run(net), "disk": on_disk(net), "fp16": 2 * numbers}
        print(json.dumps({**full, **common}))
        packed = load(Plan, plan.plan).apply(net)
        execution = build(Execution, {"backends": list(plan.backends)})
        placed = execution.place(packed)
        for line in lines(placed):
            print(line)
        real = execution.apply(packed)
        weights = {name: math.prod(each.weight.shape) for name, each in products(packed).items()}
        low = sum(weights[each.name] for each in placed if each.backend != "fake")
        gap = Difference.of(packed(*given), real(*given))
        row = {
            "run": f"{Path(plan.plan).stem} on {', '.join(plan.backends)}",
            "ms": run(real),
            "disk": on_disk(packed),
            "memory": tensor_bytes(real),
            "share": low / sum(weights.values()),
            "difference": gap.largest / gap.scale,
        }
        print(json.dumps({**row, **common}))


if __name__ == "__main__":
    console.run(main)

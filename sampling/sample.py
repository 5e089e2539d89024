"""Sample images from a trained generator into a folder.

Examples:
  python sampling/sample.py runs/digits_dit --out runs/digits_samples count=1000
  python sampling/sample.py runs/digits_dit --out runs/sevens classes=[7] sampler.guidance.scale=2
  python sampling/sample.py runs/shapes_var --out runs/scales --steps count=10 \\
         sampler.decoding.top_k=100 sampler.guidance.scale=2
  python sampling/sample.py runs/shapes_var --out runs/two count=1000 \\
         'sampler={name: collaborative, refiner: runs/shapes_var_small, draft_steps: 4}'
  python sampling/sample.py runs/shapes_text_dit --out runs/hearts --prompt "a red heart" \\
         count=16 negative="a circle" sampler.guidance.scale=3
  accelerate launch --num_processes 2 sampling/sample.py runs/digits_dit --out runs/many count=50000
Image i depends on (seed, i) alone, not on the number of processes or on interruptions.
"""

from pathlib import Path
from typing import Any

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_model(parser)
    console.takes_overrides(parser, "count, seed, classes, negative, chunk, sampler.*")
    console.takes_prompts(parser)
    parser.add_argument(
        "--out", required=True, help="the sample folder; an interrupted one is completed"
    )
    parser.add_argument(
        "--steps", action="store_true", help="also steps.png: the first images after every step"
    )
    parser.add_argument("--backends", help="of quantized layers, in order: int8,torchao,fake")
    args = parser.parse_intermixed_args()

    from genvis.config import build, override
    from genvis.devices import processes
    from genvis.models import fingerprint
    from genvis.quant.execution import executed
    from genvis.samplers import SAMPLERS
    from genvis.samplers.base import load_generator
    from genvis.samplers.folder import Sampling, sample_folder, save_steps

    generator = load_generator(args.model, trust_code=args.trust_code)
    source = fingerprint(args.model)
    if args.backends:
        generator = executed(generator.to(processes().device), args.backends.split(","))
        source = f"{source} on {args.backends}"
    suggested: dict[str, Any] = {"sampler": SAMPLERS.dump(generator.config.sampler)}
    if prompts := console.prompts_of(args):
        suggested |= {"prompts": prompts, "count": len(prompts)}
    sampling = build(Sampling, override(suggested, args.overrides))
    images, _ = sample_folder(generator, sampling, args.out, source)
    if args.steps and processes().is_main_process:
        save_steps(generator, sampling, Path(args.out) / "steps.png")
    print(f"{args.out}: {len(images)} images in samples.npz, the first ones in grid.png")


if __name__ == "__main__":
    console.run(main)

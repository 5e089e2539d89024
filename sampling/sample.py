"""Sample images from a trained generator into a folder.

Examples:
  python sampling/sample.py runs/digits_dit --out runs/digits_samples count=1000
  python sampling/sample.py runs/digits_dit --out runs/sevens classes=[7] sampler.guidance.scale=2
  accelerate launch --num_processes 2 sampling/sample.py runs/digits_dit --out runs/many count=50000
Image i depends on (seed, i) alone, not on the number of processes or on interruptions.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_model(parser)
    console.takes_overrides(parser, "count, seed, classes, chunk, sampler.*")
    parser.add_argument(
        "--out", required=True, help="the sample folder; an interrupted one is completed"
    )
    args = parser.parse_intermixed_args()

    from genvis.config import build, dump, override
    from genvis.models import fingerprint
    from genvis.samplers.folder import Sampling, sample_folder
    from genvis.samplers.generator import Generator

    generator = Generator.from_pretrained(args.model, trust_code=args.trust_code)
    sampling = build(
        Sampling, override({"sampler": dump(generator.config.sampler)}, args.overrides)
    )
    images, _ = sample_folder(generator, sampling, args.out, fingerprint(args.model))
    print(f"{args.out}: {len(images)} images in samples.npz, the first ones in grid.png")


if __name__ == "__main__":
    console.run(main)

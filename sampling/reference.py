"""Write a reference file: the statistics of real images in an extractor's features.

Example:
  python sampling/reference.py my_photos configs/imagenet/adm.yaml --out runs/photos.safetensors
Name it in an evaluation's config as reference={name: file, path: runs/photos.safetensors}.
"""

from pathlib import Path

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("images", help="a folder, zip or .npz of images, or a run")
    parser.add_argument("evaluation", help="a suite's YAML file: its extractor and chunk are used")
    console.takes_overrides(parser, "changes to the suite")
    parser.add_argument("--out", required=True, help="the file to write, a .safetensors")
    parser.add_argument("--rows", action="store_true", help="keep features too, for KID and recall")
    args = parser.parse_intermixed_args()

    from genvis.config import build, override, read_yaml
    from genvis.devices import processes
    from genvis.evaluation.observe import observe
    from genvis.evaluation.reference import save_reference
    from genvis.evaluation.sources import source_of
    from genvis.evaluation.suite import Suite

    given = override(read_yaml(args.evaluation), args.overrides)
    suite = build(Suite, {key: value for key, value in given.items() if key != "name"})
    images = source_of(args.images).open(suite.making, suite.chunk)
    folder = Path(f"{args.out}.parts")
    seen = observe(images, suite.extractor.build(), folder, chunk=suite.chunk)
    if processes().is_main_process:
        save_reference(args.out, seen, rows=args.rows)
        print(f"{args.out}: {seen.n} images in the features of {seen.extractor}")


if __name__ == "__main__":
    console.run(main)

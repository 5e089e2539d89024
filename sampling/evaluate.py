"""Measure images, wherever they come from, by a protocol in a YAML file.

Examples:
  python sampling/evaluate.py runs/digits_samples configs/digits/evaluation.yaml
  python sampling/evaluate.py runs/digits_dit configs/digits/suite.yaml making.count=5000
  python sampling/evaluate.py runs/int4 configs/digits/suite.yaml --against runs/digits_dit
  accelerate launch --num_processes 2 sampling/evaluate.py my_images configs/imagenet/adm.yaml
  torchrun --nproc_per_node 2 sampling/evaluate.py my_images configs/digits/suite.yaml  (CPUs alone)
The images are a run or model folder, a folder or zip of images, an .npz, a diffusers pipeline's
folder, or a .yaml that names one of these. An interrupted evaluation goes on where it stopped.
Records go to OUT/records.jsonl, and to --records where it is given.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("images", help="what is measured")
    parser.add_argument("evaluation", help="a YAML file, such as configs/digits/evaluation.yaml")
    console.takes_overrides(parser, "such as draws=50")
    parser.add_argument("--against", help="images of the same keys from another model")
    parser.add_argument("--records", help="another JSON-lines file to append the records to")
    parser.add_argument("--out", help="the folder for features and kept images (default: in runs/)")
    args = parser.parse_intermixed_args()

    from genvis.config import override, read_yaml
    from genvis.devices import processes
    from genvis.evaluation import EVALUATIONS
    from genvis.evaluation.records import append

    chosen = override({"name": "judge", **read_yaml(args.evaluation)}, args.overrides)
    records, text = EVALUATIONS.build(chosen).report(args.images, args.against, args.out)
    if processes().is_main_process:
        if args.records:
            append(args.records, *records)
        print(text)


if __name__ == "__main__":
    console.run(main)

"""Measure samples against real images and against references that are easy to beat, or that cheat.

Examples:
  python sampling/evaluate.py runs/digits_samples configs/digits/evaluation.yaml
  python sampling/evaluate.py runs/int4_samples configs/digits/evaluation.yaml \\
         --against runs/digits_samples --records runs/records.jsonl
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("samples", help="a sample folder, or an .npz with arr_0 and arr_1")
    parser.add_argument("evaluation", help="a YAML file, such as configs/digits/evaluation.yaml")
    console.takes_overrides(parser, "such as draws=50")
    parser.add_argument("--against", help="samples of the same keys from another model, for PSNR")
    parser.add_argument("--records", help="a JSON-lines file to append the record to")
    args = parser.parse_intermixed_args()

    from genvis.config import load
    from genvis.evaluation.evaluate import REFERENCES, Evaluation, Judge, table
    from genvis.evaluation.records import append
    from genvis.samplers.folder import read_pairs, read_samples

    judge = Judge(load(Evaluation, args.evaluation, args.overrides))
    if args.against:
        images, labels, against = read_pairs(args.samples, args.against)
    else:
        (images, labels), against = read_samples(args.samples), None
    # a reference's row must not hide the samples' own
    subject = f"./{args.samples}" if args.samples in REFERENCES else args.samples
    records = judge.measure(subject, images, labels, against)
    if args.records:
        append(args.records, *records)
    print(table([*records, *judge.references()]))


if __name__ == "__main__":
    console.run(main)

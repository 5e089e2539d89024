"""Quality against bits: models of several sizes under several plans, in one table and one picture.

Example:
  python sampling/quant_study.py configs/digits/quant_study.yaml --out runs/quant_study \\
         --models runs/digits_dit runs/digits_dit_small runs/digits_var
Every model's row in full precision comes first, and its plans' images are paired with its own. A
study that was interrupted goes on where it stopped. OUT/study.jsonl has a line for every row,
study.md the table, study.png the curves.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("study", help="a YAML file: plans, an evaluation, seeds")
    console.takes_overrides(parser, "such as count=500 seeds=[0,1,2]")
    parser.add_argument("--models", nargs="+", required=True, help="run or model folders")
    parser.add_argument("--out", required=True, help="the folder for models, samples and results")
    args = parser.parse_intermixed_args()

    from genvis.compression.study import QuantStudy, study, table
    from genvis.config import load
    from genvis.devices import processes

    rows = study(args.models, load(QuantStudy, args.study, args.overrides), args.out)
    if processes().is_main_process:
        print(table(rows), end="")


if __name__ == "__main__":
    console.run(main)

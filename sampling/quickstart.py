"""The main job on a laptop: train, sample, search, quantize, evaluate, report; no network needed.

Example: python sampling/quickstart.py --folder runs/quickstart
An interrupted quickstart goes on where it stopped.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("--folder", default="runs/quickstart", help="where everything goes")
    parser.add_argument("--configs", default="configs/digits", help="the folder of the YAML files")
    parser.add_argument("--seed", type=int, default=0, help="of training, samples and search")
    console.takes_overrides(parser, "changes to the recipe")
    args = parser.parse_intermixed_args()

    from genvis.evaluation.evaluate import table
    from genvis.evaluation.records import read
    from genvis.quickstart import Quickstart
    from genvis.report import write_report

    study = Quickstart.load(args.configs, args.seed, args.overrides)
    study.run(args.folder)
    page = write_report(args.folder)
    print(table(read(f"{args.folder}/records.jsonl")))
    print(f"\nreport: {page}")


if __name__ == "__main__":
    console.run(main)

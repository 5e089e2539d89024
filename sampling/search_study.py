"""Compare search methods at several budgets and seeds: one table and one picture.

Example:
  python sampling/search_study.py runs/digits_dit configs/digits/search_study.yaml \\
         --out runs/searches
Every search is a folder of its own, as sampling/search.py writes it; an interrupted comparison
goes on where it stopped. comparison.json has a row for every method and budget, comparison.png
the curves.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_model(parser)
    parser.add_argument("comparison", help="a YAML file: a study, methods and seeds")
    console.takes_overrides(parser, "such as study.count=50 seeds=[0]")
    parser.add_argument("--out", required=True, help="the folder for the searches")
    args = parser.parse_intermixed_args()

    from genvis.config import load
    from genvis.devices import processes
    from genvis.evaluation.tables import aligned
    from genvis.search.comparison import Comparison, cells, compare
    from genvis.search.makers import source_of

    wanted = load(Comparison, args.comparison, args.overrides)
    rows = compare(source_of(args.model, trust_code=args.trust_code), wanted, args.out)
    if processes().is_main_process:
        print(aligned(cells(rows)))


if __name__ == "__main__":
    console.run(main)

"""Compare two evaluations: is the difference larger than the noise?

Example: python sampling/compare.py runs/records.jsonl runs/int8 runs/int4
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("records", help="a JSON-lines file of records")
    parser.add_argument("first", help="whose images: a subject of the file")
    parser.add_argument("second", help="and another's; differences are second minus first")
    args = parser.parse_args()

    from genvis.evaluation.compare import comparisons
    from genvis.evaluation.records import read

    for found in comparisons(read(args.records), args.first, args.second):
        print(found)


if __name__ == "__main__":
    console.run(main)

"""A page of prompts by images of a text run, and on `shapes` the checker's accuracy by category.

Examples:
  python sampling/sample.py runs/shapes_text_dit --prompts configs/shapes/prompts.txt \\
         --out runs/told count=2128
  python sampling/text_report.py runs/told
  python sampling/text_report.py runs/portraits --plain    (prompts that are no captions of shapes)
Writes prompts.html, one self-contained file, into the folder; accuracies go to its records.jsonl.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("folder", help="a sample folder that was made of prompts")
    parser.add_argument("--plain", action="store_true", help="only the page, nothing is checked")
    args = parser.parse_args()

    from genvis.evaluation.tables import aligned
    from genvis.evaluation.text_run import report

    path, table = report(args.folder, args.plain)
    if table:
        print(aligned(table))
    print(path)


if __name__ == "__main__":
    console.run(main)

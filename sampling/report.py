"""Write report.html of a study's folder, such as what `make quickstart` leaves in runs/quickstart.

Example: python sampling/report.py runs/quickstart
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("folder", help="the study's folder")
    args = parser.parse_args()

    from genvis.report import write_report

    print(write_report(args.folder))


if __name__ == "__main__":
    console.run(main)

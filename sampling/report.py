"""Write report.html of a study's folder, such as what `make quickstart` leaves in runs/quickstart.

Example: python sampling/report.py runs/quickstart
"""

import argparse

from genvis import console


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="the study's folder")
    args = parser.parse_args()

    from genvis.report import write_report

    print(write_report(args.folder))


if __name__ == "__main__":
    console.run(main)

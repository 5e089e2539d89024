"""Search for better images at test time, at rising budgets.

Examples:
  python sampling/search.py runs/digits_dit configs/digits/search.yaml --out runs/digits_search
  python sampling/search.py runs/digits_dit configs/digits/search.yaml --out runs/bo64 \\
         search.n=64 budgets=[1,8,64]
The folder gets search.json (scores by verifier and judge, evaluations) and every budget's images.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_model(parser)
    parser.add_argument("study", help="a YAML file, such as configs/digits/search.yaml")
    console.takes_overrides(parser, "changes to the study, such as search.n=32")
    parser.add_argument("--out", required=True, help="the folder for the result")
    args = parser.parse_intermixed_args()

    from genvis.config import load
    from genvis.models import fingerprint
    from genvis.samplers.generator import Generator
    from genvis.search.study import Study, search_folder

    study = load(Study, args.study, args.overrides)
    generator = Generator.from_pretrained(args.model, trust_code=args.trust_code)
    for row in search_folder(generator, study, args.out, fingerprint(args.model)):
        verifier, judge = (sum(row[key]) / len(row[key]) for key in ("verifier", "judge"))
        spent = row["spent"]["evaluations"]
        print(
            f"{row['budget']:4d} candidates, {spent} evaluations: "
            f"verifier {verifier:.3f}, judge {judge:.3f}"
        )


if __name__ == "__main__":
    console.run(main)

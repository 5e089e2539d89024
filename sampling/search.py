"""Search for better images at test time.

Examples:
  python sampling/search.py runs/digits_dit configs/digits/search.yaml --out runs/digits_search
  python sampling/search.py runs/digits_dit configs/digits/search.yaml --out runs/bo64 \\
         search.n=64 budgets=[1,8,64]
  python sampling/search.py my_pipeline search.yaml --out runs/cats --prompt "a cat" \\
         limit.evaluations=1000
  accelerate launch --num_processes 2 sampling/search.py runs/dit search.yaml --out runs/many
Image i depends on (seed, i) alone, not on the number of processes or on interruptions. The folder
gets the images found (samples.npz, grid.png; of every budget in budget_NNN), results.jsonl (a line
an image: scores, lineage, what was spent), search.json, scores.png and tree.png.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_model(parser)
    parser.add_argument("study", help="a YAML file, such as configs/digits/search.yaml")
    console.takes_overrides(parser, "changes to the study, such as search.n=32")
    console.takes_prompts(parser)
    parser.add_argument("--out", required=True, help="the folder for the result")
    args = parser.parse_intermixed_args()

    from genvis.config import build, override, read_yaml
    from genvis.devices import processes
    from genvis.evaluation.tables import aligned
    from genvis.search.folder import search_folder
    from genvis.search.lines import cells
    from genvis.search.makers import source_of
    from genvis.search.study import Study

    data = read_yaml(args.study)
    if prompts := console.prompts_of(args):
        data |= {"prompts": prompts, "count": len(prompts)}
    study = build(Study, override(data, args.overrides))
    source = source_of(args.model, trust_code=args.trust_code)
    found = search_folder(source.open(study), study, args.out)
    if processes().is_main_process:
        print(aligned(cells(found)))
        if found["warning"]:
            print(f"WARNING: {found['warning']}")


if __name__ == "__main__":
    console.run(main)

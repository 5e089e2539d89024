"""Train a feature extractor or verifier, a classifier or a CLIP, and store it where the package
ships it, with its recipe, hash and worth on held-out images in a JSON beside it.

Examples:
  python train_scripts/train_features.py configs/digits/features/digits-cnn-v1.yaml \\
         runs/digits-cnn-v1 --to genvis/features/weights/digits-cnn-v1
  python train_scripts/train_features.py configs/shapes/features/shapes-clip-v1.yaml \\
         runs/shapes-clip-v1 --to genvis/features/weights/shapes-clip-v1
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument(
        "recipe", help="a YAML file, such as configs/digits/features/digits-cnn-v1.yaml"
    )
    parser.add_argument("run", help="the run folder; an interrupted run there is resumed")
    console.takes_overrides(parser, "changes to the recipe")
    parser.add_argument("--to", required=True, help="the folder that gets config and weights")
    args = parser.parse_args()

    import json
    from pathlib import Path

    from genvis.checkpoint import atomic_write, check_target
    from genvis.config import dump, load
    from genvis.evaluation.held_out import measure_of
    from genvis.features.clip_tokens import FILES
    from genvis.training.fit import fit
    from genvis.training.recipe import Recipe

    check_target(args.to, beside=FILES)
    recipe = load(Recipe, args.recipe, args.overrides)
    measure = measure_of(recipe.objective)
    fit(recipe, args.run).save_pretrained(args.to)
    worth = measure(Path(args.to).resolve(), recipe.data)
    record = {
        **worth,
        "command": f"python train_scripts/train_features.py {args.recipe} RUN --to {args.to}",
        "recipe": dump(recipe),
    }
    atomic_write(Path(args.to).with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    print(f"{Path(args.to).name}: {json.dumps(worth)}")


if __name__ == "__main__":
    console.run(main)

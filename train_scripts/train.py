"""Train a model: everything about the run is in the recipe.

Examples:
  python train_scripts/train.py configs/digits/dit.yaml
  python train_scripts/train.py configs/digits/dit.yaml --out runs/wide model.backbone.width=192
  accelerate launch --num_processes 2 train_scripts/train.py configs/digits/dit.yaml
An interrupted run is resumed by the same command, exactly.
"""

from pathlib import Path

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("recipe", help="a YAML file, such as configs/digits/dit.yaml")
    console.takes_overrides(parser, "changes to the recipe, such as optim.lr=2e-4")
    parser.add_argument("--out", help="the run folder (default: runs/NAME of the recipe's file)")
    args = parser.parse_intermixed_args()

    from genvis.config import load
    from genvis.training.fit import fit
    from genvis.training.recipe import Recipe

    recipe = load(Recipe, args.recipe, args.overrides)
    folder = Path(args.out or f"runs/{Path(args.recipe).parent.name}_{Path(args.recipe).stem}")
    fit(recipe, folder)
    print(f"{folder}: trained {recipe.steps} steps; model in {folder / 'model'}")


if __name__ == "__main__":
    console.run(main)

"""Train a feature extractor or verifier and store it where the package ships it.

Example: python train_scripts/train_features.py configs/digits/features/digits-cnn-v1.yaml \\
             runs/digits-cnn-v1 --to genvis/features/weights/digits-cnn-v1
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument(
        "recipe", help="a YAML file, such as configs/digits/features/digits-cnn-v1.yaml"
    )
    parser.add_argument("run", help="the run folder; an interrupted run there is resumed")
    console.takes_overrides(parser, "changes to the recipe")
    parser.add_argument(
        "--to",
        required=True,
        help="the folder that gets config.json and model.safetensors",
    )
    args = parser.parse_args()

    import json
    from pathlib import Path

    import torch

    from genvis.checkpoint import atomic_write, check_target
    from genvis.config import dump, load
    from genvis.features.classifier import Classifier
    from genvis.training.fit import fit
    from genvis.training.recipe import Recipe

    check_target(args.to)
    recipe = load(Recipe, args.recipe, args.overrides)
    fit(recipe, args.run).save_pretrained(args.to)
    shipped = Classifier.from_pretrained(Path(args.to).resolve())
    held_out = recipe.data.build("val")
    batch = held_out[range(len(held_out))]
    with torch.no_grad():
        accuracy = (shipped.log_probs(batch.x).argmax(1) == batch.cond.label).float().mean().item()
    record = {
        "sha256": shipped.sha256,
        "held_out_accuracy": round(accuracy, 4),
        "held_out": len(held_out),
        "command": f"python train_scripts/train_features.py {args.recipe} RUN --to {args.to}",
        "recipe": dump(recipe),
    }
    atomic_write(Path(args.to).with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    print(f"{shipped.name}:{shipped.sha256[:6]} held-out accuracy {accuracy:.4f}")


if __name__ == "__main__":
    console.run(main)

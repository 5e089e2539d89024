"""Give a trained tokenizer latents of mean 0 and standard deviation 1 in every channel.

Example: python train_scripts/scale.py runs/shapes_vitok configs/shapes/measure.yaml \\
             models/shapes_vitok
The new model folder holds the same weights, with the numbers that were measured on those data;
latent models use it as `tokenizer: {name: pretrained, path: models/shapes_vitok}`.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_model(parser)
    parser.add_argument("measuring", help="a YAML file: which data, how many examples")
    parser.add_argument("folder", help="the model folder to write")
    console.takes_overrides(parser, "such as count=10000")
    args = parser.parse_intermixed_args()

    from genvis.checkpoint import check_target
    from genvis.config import load
    from genvis.devices import processes
    from genvis.tokenizers.model import TokenizerModel
    from genvis.training.scaling import Measuring

    check_target(args.folder)
    measuring = load(Measuring, args.measuring, args.overrides)
    model = TokenizerModel.from_pretrained(args.model, trust_code=args.trust_code)
    scaled = measuring.scaled(model.to(processes().device))
    scaled.save_pretrained(args.folder)
    chosen = scaled.config.tokenizer
    print(f"{args.folder}: mean {chosen.mean}, std {chosen.std}")


if __name__ == "__main__":
    console.run(main)

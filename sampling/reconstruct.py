"""Measure a trained tokenizer: pairs of images, codebook usage, cost.

Example: python sampling/reconstruct.py runs/digits_vq configs/digits/reconstruction.yaml
Then, for distances between the sets (rFD, LPIPS):
  python sampling/evaluate.py runs/digits_vq_pairs/reconstructions.npz configs/digits/suite.yaml \\
         --against runs/digits_vq_pairs/originals.npz
"""

from pathlib import Path

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_model(parser)
    parser.add_argument("reconstructing", help="a YAML file: data, how many, which judge")
    console.takes_overrides(parser, "such as count=256")
    parser.add_argument("--out", help="the folder to write (default: MODEL_pairs)")
    args = parser.parse_intermixed_args()

    from genvis.config import load
    from genvis.devices import processes
    from genvis.evaluation.reconstruction import Reconstructing
    from genvis.tokenizers.model import TokenizerModel

    wanted = load(Reconstructing, args.reconstructing, args.overrides)
    model = TokenizerModel.from_pretrained(args.model, trust_code=args.trust_code)
    folder = Path(args.out or f"{str(args.model).rstrip('/')}_pairs")
    for record in wanted.report(model.to(processes().device).net, folder, Path(args.model).name):
        print(f"{record.metric}: {record.value:.4g}")


if __name__ == "__main__":
    console.run(main)

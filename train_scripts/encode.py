"""Encode a dataset once into latents that training reads instead of images.

Examples:
  python train_scripts/encode.py configs/digits/encode.yaml latents/digits
  accelerate launch --num_processes 8 train_scripts/encode.py mine.yaml latents/mine --workers 8
  python train_scripts/train.py my_dit.yaml 'data={name: latents, folder: latents/mine}'
An interrupted encoding is resumed by the same command, to the same shards.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("encoding", help="a YAML file, such as configs/digits/encode.yaml")
    parser.add_argument("folder", help="the folder that gets a folder of shards for each split")
    console.takes_overrides(parser, "changes to the encoding, such as dtype=float32")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    args = parser.parse_intermixed_args()

    from genvis.config import load
    from genvis.devices import processes
    from genvis.training.encoding import Encoding, encode

    encoding = load(Encoding, args.encoding, args.overrides)
    folder = encode(encoding, args.folder, args.workers)
    if processes().is_main_process:
        print(f"{folder}: latents of {', '.join(encoding.splits)}")


if __name__ == "__main__":
    console.run(main)

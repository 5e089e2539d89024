"""Encode the captions of a dataset once, by a frozen text encoder.

Example:
  python train_scripts/embed.py configs/shapes/embed.yaml texts/shapes_clip text.path=my_clip
  accelerate launch --num_processes 2 train_scripts/embed.py configs/shapes/embed.yaml texts/many
Then train with data={name: embedded, data: {...}, folder: texts/shapes_clip}. An interrupted
encoding goes on where it stopped.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("embedding", help="a YAML file, such as configs/shapes/embed.yaml")
    parser.add_argument("folder", help="the folder that gets the shards")
    console.takes_overrides(parser, "changes to the embedding, such as text.path=my_clip")
    args = parser.parse_intermixed_args()

    from genvis.config import load
    from genvis.devices import processes
    from genvis.training.embedding import Embedding, embed

    folder = embed(load(Embedding, args.embedding, args.overrides), args.folder)
    if processes().is_main_process:
        print(f"{folder}: texts of all captions")


if __name__ == "__main__":
    console.run(main)

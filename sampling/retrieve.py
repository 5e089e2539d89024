"""How well a CLIP knows `shapes`: how often it finds an image's caption among 64 and how often that
is possible; and its score as one, two, three attributes of the caption are made wrong.

Examples:
  python sampling/retrieve.py shapes-clip-v1
  python sampling/retrieve.py runs/my_clip/model among=100 data.held_out=5000
The ceiling counts captions that several images share and captions that fit but say less.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("clip", help="a shipped network, or a folder of CLIP, SigLIP or open_clip")
    console.takes_overrides(parser, "data.*, among, splits")
    args = parser.parse_intermixed_args()

    from genvis.config import build, override
    from genvis.devices import processes
    from genvis.evaluation.corruption import Corruption
    from genvis.evaluation.retrieval import Retrieval
    from genvis.features.clip import images_and_words

    wanted = build(Retrieval, override({}, args.overrides))
    clip = images_and_words(args.clip).to(processes().device)
    for retrieved in wanted.report(clip):
        print(retrieved)
    for fall in Corruption(data=wanted.data, splits=wanted.splits).report(clip):
        print(fall)


if __name__ == "__main__":
    console.run(main)

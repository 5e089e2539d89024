"""Images for a published benchmark of prompts, and its scores once its own script has judged them.

Examples:
  python sampling/benchmark.py geneval evaluation_metadata.jsonl --images my_pipeline \\
         --out runs/geneval seed=0
  python evaluation/evaluate_images.py runs/geneval --outfile results.jsonl ...  (GenEval's own)
  python sampling/benchmark.py geneval evaluation_metadata.jsonl --results results.jsonl
  python sampling/benchmark.py t2i_compbench color_val.txt --images runs/my_t2i --out runs/color
  python sampling/benchmark.py t2i_compbench color_val.txt \\
         --results runs/color/annotation_blip/vqa_result.json --out runs/color
With results, --out gets prompts.html: prompts by images, with their scores.
The images are of a run or model folder, a diffusers pipeline, a .yaml that names one with its
options, or a sample folder made of these prompts. An interrupted run goes on where it stopped.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("benchmark", help="geneval or t2i_compbench")
    parser.add_argument("prompts", help="its published prompt file")
    console.takes_overrides(parser, "such as count=2 (images of a prompt), seed=1, sampler.*")
    parser.add_argument("--images", help="what makes the images")
    parser.add_argument("--out", help="the folder for the images")
    parser.add_argument("--chunk", type=int, default=64, help="images made together")
    parser.add_argument("--results", help="the file that the benchmark's own script wrote")
    args = parser.parse_intermixed_args()

    from genvis.config import build, override
    from genvis.evaluation import BENCHMARKS
    from genvis.evaluation.benchmarks import tally
    from genvis.evaluation.layout import cells, lay_out, show
    from genvis.evaluation.sources import Making, source_of
    from genvis.evaluation.tables import aligned

    given = override({}, args.overrides)
    count = {"images": given.pop("count")} if "count" in given else {}
    benchmark = BENCHMARKS.build({"name": args.benchmark, "path": args.prompts, **count})
    if args.results:
        tasks = benchmark.tasks()
        scores = benchmark.scores(tasks, args.results)
        print(aligned(cells(tally(benchmark, tasks, scores))))
        if args.out:
            print(show(benchmark, scores, args.out))
        return
    if not (args.images and args.out):
        raise ValueError("give --images and --out to make images, or --results to read scores")
    made = lay_out(benchmark, source_of(args.images), build(Making, given), args.out, args.chunk)
    print(f"{args.out}: {made} images, each with a line in images.jsonl")


if __name__ == "__main__":
    console.run(main)

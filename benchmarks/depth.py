"""What depth does to activations: runs with the `activations` callback, a line each, as a picture.

Example: python benchmarks/depth.py runs/depth/*_[012] --out depth.png
Runs named alike but for the last _part (the seed) form a group. The table has, for every group and
seed, the held-out loss at the end (raw and averaged weights), the largest and the last layer's root
mean square over the logged steps, and the gradient norm's mean and standard deviation over steps.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("runs", nargs="+", help="run folders, such as runs/depth/pre_0")
    parser.add_argument("--out", required=True, help="the picture to write, .png")
    args = parser.parse_args()

    import statistics
    from pathlib import Path

    from genvis.checkpoint import atomic_write
    from genvis.plots import Curve, blank, draw, png
    from genvis.training.journal import read_journal

    groups: dict[str, list[Path]] = {}
    for run in map(Path, args.runs):
        groups.setdefault(run.name.rpartition("_")[0], []).append(run)
    by_step, by_layer = [], []
    print("| run | loss | of averaged weights | largest layer | last layer | gradient norm |")
    print("|---|---|---|---|---|---|")
    for name, runs in groups.items():
        largest, layers = [], []
        for run in runs:
            journal = read_journal(run)
            seen = [{k: v for k, v in line.items() if k.startswith("feature_")} for line in journal]
            steps = [line["step"] for line, found in zip(journal, seen, strict=True) if found]
            features = [[*found.values()] for found in seen if found]
            if not features:
                raise ValueError(
                    f"{run}: its log has no activations: add the callback to its recipe"
                )
            largest.append([max(found) for found in features])
            layers.append(features[-1])
            norms = [line["grad_norm"] for line in journal if "grad_norm" in line]
            end = next(line for line in reversed(journal) if "val_loss" in line)
            print(
                f"| {run.name} | {end['val_loss']:.4f} | {end['val_ema_loss']:.4f} | "
                f"{max(largest[-1]):.2f} | {layers[-1][-1]:.2f} | "
                f"{statistics.mean(norms):.3f} +- {statistics.stdev(norms):.3f} |"
            )
        for curves, rows, x in (
            (by_step, largest, steps),
            (by_layer, layers, range(1, len(layers[0]) + 1)),
        ):
            columns = [*zip(*rows, strict=True)]
            mean, low, high = ([*map(f, columns)] for f in (statistics.mean, min, max))
            curves.append(Curve(name, [*x], mean, low, high))
    figure = blank(2)
    left, right = figure.subplots(1, 2)
    draw(left, by_step, "largest layer, mean and range of seeds", "step", "root mean square")
    draw(right, by_layer, "at the last step", "layer", "root mean square")
    atomic_write(args.out, png(figure))


if __name__ == "__main__":
    console.run(main)

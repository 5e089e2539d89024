"""What a change of a model (quantization, pruning, fewer bits) did to the images of the same keys.

Row i of both sets comes from the same noise and label, so everything is paired: the drift between
the sets has no floor but 0, and the change of a distance to data is known far better than either
distance, since what chance did to one set it did to the other.
Letters: N images, G groups.
"""

import json
from collections.abc import Callable
from functools import reduce
from operator import add
from pathlib import Path

from genvis.checkpoint import atomic_write, read_json
from genvis.devices import processes
from genvis.evaluation.extraction import metric_name
from genvis.evaluation.frechet import frechet_distance
from genvis.evaluation.generated import Generated
from genvis.evaluation.jackknife import Jackknife, jackknife
from genvis.evaluation.observe import Seen
from genvis.evaluation.records import Record, stamped
from genvis.evaluation.reference import Reference
from genvis.evaluation.sources import Images
from genvis.evaluation.statistics import Statistics

GROUPS = 10


def changes(seen: Seen, base: Seen, reference: Reference | None) -> list[Record]:
    """FD between the sets, and how much farther from the reference the changed one is."""
    drift = _paired(seen, base, frechet_distance)
    common = {
        "n": seen.n,
        "extractor": seen.extractor,
        "extractor_sha256": seen.sha256,
        "resize": seen.resize,
    }
    records = [
        stamped(
            metric=metric_name("drift-FD", seen.extractor, seen.sha256),
            value=drift.value,
            error=drift.error,
            interval=drift.interval(),
            reference="the same keys",
            reference_sha256=base.images_sha256,
            n_reference=base.n,
            beside={"floor": 0.0},
            **common,
        )
    ]
    if reference is not None:
        real = reference.statistics("features")
        farther = _paired(
            seen, base, lambda a, b: frechet_distance(a, real) - frechet_distance(b, real)
        )
        records.append(
            stamped(
                metric=metric_name("change-of-FD", seen.extractor, seen.sha256),
                value=farther.value,
                error=farther.error,
                interval=farther.interval(),
                reference=reference.name,
                reference_sha256=reference.sha256,
                n_reference=reference.n,
                **common,
            )
        )
    return records


def cost(images: Images, path: Path) -> list[Record]:
    """What a model costs: bytes of its weights, milliseconds an image, a chunk at once. Measured
    once, by the main process, and kept in the file at `path`.
    """
    if not isinstance(images, Generated):
        return []
    state = processes()
    if state.is_main_process and not path.exists():
        atomic_write(path, json.dumps({"ms_per_image": 1000 * images.seconds()}) + "\n")
    state.wait_for_everyone()
    measured = read_json(path)["ms_per_image"]
    found = [stamped(metric="ms_per_image", value=measured, n=images.sampling.chunk)]
    if images.bytes is not None:
        found.append(stamped(metric="bytes", value=float(images.bytes), n=1))
    return found


def _paired(a: Seen, b: Seen, value: Callable[[Statistics, Statistics], float]) -> Jackknife:
    """The jackknife that leaves the same rows out of both sets."""
    count = min(GROUPS, a.n // 2)
    ours, theirs = (each.groups("features", count) for each in (a, b))

    def of(left: int | None) -> float:
        kept = [g for g in range(count) if g != left]
        return value(*(reduce(add, [groups[g] for g in kept]) for groups in (ours, theirs)))

    return jackknife(of(None), [of(g) for g in range(count)])

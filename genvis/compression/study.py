"""Models of several sizes under several plans: what is left of their images, by how many bits.

Every model's row in full precision comes first; its images are what those of its plans, from the
same keys, are paired with. The folder holds a folder for every model and plan (`model/`, samples
and evaluation of each seed, stages), `study.jsonl` with a line for every row, `study.md` and
`study.png`; an interrupted study goes on where it stopped.

Source: Ding et al. 2025, "Dissecting bit-level scaling laws in quantizing vision generative models"
(quality against all bits of a model, one curve for a format over sizes of a family).
Letters: S seeds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch import nn

from genvis.checkpoint import atomic_write, in_use, open_run
from genvis.compression.costs import FULL_BITS
from genvis.compression.pipeline import Compression
from genvis.config import build, config, dump, override, read_yaml
from genvis.console import prompt_lines
from genvis.devices import processes
from genvis.evaluation.suite import Suite
from genvis.models import MODELS, fingerprint
from genvis.plots import COLOURS, MARKERS, blank, key_beside, label, png
from genvis.quant.backends import Fake
from genvis.quant.execution import Execution
from genvis.quant.products import products
from genvis.quant.stored import Stored
from genvis.samplers.base import BaseGenerator, load_generator
from genvis.samplers.folder import Sampling, sample_folder

FULL = "full"
Row = dict[str, Any]
# of a row, by the kind of record
KEYS = {"FD": "fd", "change-of-FD": "change", "drift-FD": "drift", "psnr": "psnr"}
COLUMNS = {  # of study.md, by the key of a row
    "fd": "FD to data",
    "change": "change of FD",
    "drift": "FD to full precision",
    "psnr": "PSNR, dB",
}


@config
class PlanFile:
    """A file that `train_scripts/quantize.py` takes, and changes to it."""

    path: str
    overrides: tuple[str, ...] = ()

    def compression(self) -> Compression:
        return build(Compression, override(read_yaml(self.path), self.overrides))


@config
class QuantStudy:
    """plans by a name of ours; each model samples as its own config says, image i of seed s from
    keys of (s, i). prompts: a text file, a line an image, for models that read a text.
    """

    plans: dict[str, PlanFile]
    evaluation: Suite
    count: int = 1000
    chunk: int = 100
    seeds: tuple[int, ...] = (0,)
    prompts: str | None = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different, at least one, got {list(self.seeds)}")
        if not self.plans or FULL in self.plans:
            raise ValueError(f"plans must name at least one, and none {FULL!r}")
        if min(self.count, self.chunk) < 1:
            raise ValueError(
                f"count and chunk must be at least 1, got {self.count} and {self.chunk}"
            )

    def sampling(self, generator: BaseGenerator, seed: int) -> Sampling:
        return Sampling(
            sampler=generator.choice(),
            count=self.count,
            seed=seed,
            prompts=self.lines(),
            chunk=self.chunk,
        )

    def lines(self) -> tuple[str, ...] | None:
        return None if self.prompts is None else prompt_lines(self.prompts)


def study(models: Sequence[str], config: QuantStudy, folder: str | Path) -> list[Row]:
    """A row for every model in full precision and under every plan; also the files of the folder.

    models: run folders, model folders or hub ids, whose last part names them. ValueError, before
    any work, for names that are not different, and for prompts or a plan that does not fit a model.
    """
    named = {Path(model).name: model for model in models}
    if not models or len(named) < len(models):
        raise ValueError(f"models must be at least one, of different names, got {list(models)}")
    plans = {name: plan.compression() for name, plan in config.plans.items()}
    generators = {name: load_generator(model) for name, model in named.items()}
    for name, generator in generators.items():
        if generator.text is not None and config.prompts is None:
            raise ValueError(f"{name}: this model is told in words, so give prompts")
        config.sampling(generator, seed=0).things(generator)  # refuses what it cannot read
        for title, plan in plans.items():
            _check(plan, generator, f"{name}, {title}")
    sources = {name: fingerprint(model) for name, model in named.items()}
    made = {title: dump(plan) for title, plan in plans.items()}
    # what is in the files, not where they are
    files = {"plans": made, "prompts": list(config.lines() or ())}
    with processes().main_process_first():
        folder = open_run(folder, {"models": sources, **dump(config), **files})
    rows = []
    for name, generator in generators.items():
        here = generator.to(processes().device)
        rows.append(_row(name, FULL, here, config, folder, None))
        for title, plan in plans.items():
            small = _quantized(here, plan, folder / name / title, sources[name])
            rows.append(_row(name, title, small, config, folder, here))
    if processes().is_main_process:
        with in_use(folder):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            atomic_write(folder / "study.jsonl", lines)
            atomic_write(folder / "study.md", table(rows))
            atomic_write(folder / "study.png", _picture(rows))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: a row for every model and plan, means over seeds with their spread."""
    titles = ["model", "plan", "M parameters", "M bits", "bits a parameter", *COLUMNS.values()]
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for row in rows:
        weights, bits = row["parameters"], row["bits"]
        sizes = f"{weights / 1e6:.3g}", f"{bits / 1e6:.4g}", f"{bits / weights:.2f}"
        cells = [row["model"], row["plan"], *sizes, *(_text(row[key]) for key in COLUMNS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _check(plan: Compression, generator: BaseGenerator, where: str) -> None:
    try:
        plan.check(generator)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _quantized(
    generator: BaseGenerator, plan: Compression, folder: Path, source: str
) -> BaseGenerator:
    """As saved in the folder, made now if it is not there."""
    model = folder / "model"
    if not model.exists():
        small = plan.apply(generator, folder / "stages", source)
        if processes().is_main_process:
            small.save_pretrained(model)
        processes().wait_for_everyone()
    return load_generator(model).to(generator.device)


def _row(
    name: str,
    title: str,
    generator: BaseGenerator,
    config: QuantStudy,
    folder: Path,
    full: BaseGenerator | None,
) -> Row:
    """`full`: the same model in full precision; None if this is it."""
    found: dict[str, list[float]] = {key: [] for key in COLUMNS}
    # the same images, to the last bit, without unpacking weights at every call
    runs = generator if full is None else _unpacked(generator)
    for seed in config.seeds:
        own, base = (folder / name / each / f"seed_{seed}" for each in (title, FULL))
        sample_folder(runs, config.sampling(generator, seed), own, f"{name}, {title}")
        against = None if full is None else str(base)
        at = own.with_name(f"{own.name}_evaluation")
        records, _ = config.evaluation.report(str(own), against, at)
        for record in records:
            key = KEYS.get(record.kind)
            if key and record.subject == str(own):
                found[key].append(record.value)
    weights = (full or generator).net
    return {
        "model": name,
        "family": MODELS.dump(generator.config)["backbone"]["name"],
        "plan": title,
        "parameters": sum(p.numel() for p in weights.parameters()),
        "bits": model_bits(generator.net),
        "seeds": list(config.seeds),
        "count": config.count,
        **found,
    }


def model_bits(net: nn.Module) -> int:
    """Of all that a saved network holds: what formats store as it is, other numbers in 16 bits."""
    stored = [module for module in net.modules() if isinstance(module, Stored)]
    kept = {id(module.get_buffer(name)) for module in stored for name in module.kept}
    tensors = net.state_dict(keep_vars=True).values()
    return sum(
        8 * x.nbytes if id(x) in kept or not x.is_floating_point() else FULL_BITS * x.numel()
        for x in tensors
    )


def _unpacked(generator: BaseGenerator) -> BaseGenerator:
    """The same, its weights unpacked for good where any are packed."""
    if not products(generator.backbone):
        return generator
    return generator.having(Execution(backends=(Fake(),)).apply(generator.backbone))


def _text(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" +- {stdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean(values):.4g}{spread}"


def _picture(rows: Sequence[Row]) -> bytes:
    """FD to data and to full precision over all bits: a colour for every family, a marker for every
    plan, joined over sizes; bars from the lowest to the highest of models of one size.
    """
    figure = blank(2)
    colours, markers = (
        dict(zip(dict.fromkeys(row[key] for row in rows), each * len(rows), strict=False))
        for key, each in (("family", COLOURS), ("plan", MARKERS))
    )
    for axes, key in zip(figure.subplots(1, 2), ("fd", "drift"), strict=True):
        for family, colour in colours.items():
            for plan, marker in markers.items():
                own = [row for row in rows if (row["family"], row["plan"]) == (family, plan)]
                points = _by_bits(own, key)
                if points:
                    bits, at, below, above = zip(*points, strict=True)
                    look = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 0.8}
                    axes.errorbar(bits, at, (below, above), label=f"{family} {plan}", **look)
        label(axes, f"{COLUMNS[key]}, {rows[0]['count']} images", "M bits", "FD")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    key_beside(figure)
    return png(figure)


def _by_bits(rows: Sequence[Row], key: str) -> list[tuple[float, float, float, float]]:
    """M bits, the mean of models of that size, how far down and up they reach; by rising bits."""
    sizes: dict[float, list[float]] = {}
    for row in rows:
        if row[key]:
            sizes.setdefault(row["bits"] / 1e6, []).append(mean(row[key]))
    return [
        (bits, mean(at), mean(at) - min(at), max(at) - mean(at))
        for bits, at in sorted(sizes.items())
    ]

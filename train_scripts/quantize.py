"""Quantize a generator's weights by a plan of ordered rules, given or found.

Examples:
  python train_scripts/quantize.py runs/digits_dit configs/digits/int4.yaml --out runs/int4
  python train_scripts/quantize.py runs/digits_dit configs/quant/w4a16.yaml --out runs/w4 \\
         rules.1.rounding=gptq calibration.rows=256
  python train_scripts/quantize.py runs/digits_dit configs/digits/mixed.yaml --out runs/mixed
The result is a model folder, sampled, searched and evaluated like any other. What was drawn,
measured and allocated on the way is kept in OUT_stages, and an interrupted run goes on from there.
"""

from pathlib import Path

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_model(parser)
    parser.add_argument("plan", help="a YAML file of rules, or of choices and budgets (mixed)")
    console.takes_overrides(parser, "changes to the file, such as rules.0.weight.bits=3")
    parser.add_argument("--out", required=True, help="the model folder to write")
    parser.add_argument("--stages", help="the folder for what is found on the way")
    args = parser.parse_intermixed_args()

    from genvis.checkpoint import check_target
    from genvis.compression.pipeline import Compression
    from genvis.config import load
    from genvis.devices import processes
    from genvis.models import fingerprint, model_folder
    from genvis.quant.report import summary
    from genvis.samplers.base import load_generator

    check_target(args.out)
    if Path(args.out).resolve() == Path(model_folder(args.model)).resolve():
        raise ValueError(f"{args.out}: is the model to quantize; choose another folder")
    compression = load(Compression, args.plan, args.overrides)
    generator = load_generator(args.model, trust_code=args.trust_code).to(processes().device)
    stages = args.stages or f"{args.out}_stages"
    quantized = compression.apply(generator, stages, fingerprint(args.model))
    if not processes().is_main_process:
        return
    quantized.save_pretrained(args.out)
    result = summary(generator.net, quantized.net)
    for layer in result.layers:
        print(
            f"{layer.name:40s} weight {layer.format}, act {layer.act}: "
            f"{layer.bytes_before} -> {layer.bytes_after} bytes, {layer.sqnr:.1f} dB"
        )
    print(
        f"{args.out}: {result.bytes_before} -> {result.bytes_after} bytes of tensors; "
        f"{result.share_changed:.1%} of {result.weights} weights changed"
    )


if __name__ == "__main__":
    console.run(main)

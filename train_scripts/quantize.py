"""Quantize a generator's weights by a plan of ordered rules.

Example: python train_scripts/quantize.py runs/digits_dit configs/digits/int4.yaml --out runs/int4
The result is a model folder, sampled, searched and evaluated like any other.
"""

from pathlib import Path

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_model(parser)
    parser.add_argument("plan", help="a YAML file of rules, such as configs/digits/int4.yaml")
    console.takes_overrides(parser, "changes to the plan, such as rules.0.weight.bits=3")
    parser.add_argument("--out", required=True, help="the model folder to write")
    args = parser.parse_intermixed_args()

    from genvis.checkpoint import check_target
    from genvis.config import load
    from genvis.models import model_folder
    from genvis.quant.activations import uncalibrated
    from genvis.quant.plan import Plan
    from genvis.quant.report import summary
    from genvis.samplers.base import load_generator

    check_target(args.out)
    if Path(args.out).resolve() == Path(model_folder(args.model)).resolve():
        raise ValueError(f"{args.out}: is the model to quantize; choose another folder")
    plan = load(Plan, args.plan, args.overrides)
    generator = load_generator(args.model, trust_code=args.trust_code)
    quantized = generator.changed(plan)
    if static := uncalibrated(quantized.net):
        raise ValueError(f"{args.plan}: {static[0]} wants a static range, which needs calibration")
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

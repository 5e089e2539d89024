"""Pack a generator that was trained through quantization: the same function in the bytes of its
formats.

Example: python train_scripts/pack.py runs/digits_qat_dit --out runs/dit_w3
The result is a model folder, sampled, searched and evaluated like any other.
"""

from pathlib import Path

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    console.takes_model(parser)
    parser.add_argument("--out", required=True, help="the model folder to write")
    args = parser.parse_args()

    from genvis.checkpoint import check_target
    from genvis.compression.recovery import packed
    from genvis.models import model_folder
    from genvis.quant.report import state_bytes
    from genvis.samplers.base import load_generator

    check_target(args.out)
    if Path(args.out).resolve() == Path(model_folder(args.model)).resolve():
        raise ValueError(f"{args.out}: is the model to pack; choose another folder")
    trained = load_generator(args.model, trust_code=args.trust_code)
    small = packed(trained)
    small.save_pretrained(args.out)
    before, after = state_bytes(trained.net), state_bytes(small.net)
    print(f"{args.out}: {before} -> {after} bytes of tensors")


if __name__ == "__main__":
    console.run(main)

"""Published checkpoint in, genvis model folder out.

python train_scripts/convert.py dit DiT-XL-2-256x256.pt models/dit_xl_2 --config official.json
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("layout", help="published layout, such as dit")
    parser.add_argument("checkpoint", help=".pt, .pth or .safetensors file")
    parser.add_argument("folder", help="model folder to write")
    parser.add_argument(
        "--config", required=True, help="JSON file: constructor arguments of the released class"
    )
    parser.add_argument(
        "--use", choices=("ema", "model"), default="ema", help="part of a training checkpoint"
    )
    args = parser.parse_args()

    from genvis.backbones import BACKBONES
    from genvis.checkpoint import check_target, read_json, save_pretrained
    from genvis.integrations.official import from_official, load_official_file

    check_target(args.folder)
    official = read_json(args.config)
    if not isinstance(official, dict):
        raise ValueError(f"{args.config}: expected a mapping, got {type(official).__name__}")
    content = load_official_file(args.checkpoint)
    net = from_official(args.layout, content, official, args.use)
    save_pretrained(net, args.folder, BACKBONES)
    weights = sum(p.numel() for p in net.parameters())
    print(f"{args.folder}: {type(net).__name__}, {weights:,} parameters")


if __name__ == "__main__":
    console.run(main)

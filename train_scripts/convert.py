"""Published checkpoint in, genvis model folder out.

Examples:
  python train_scripts/convert.py dit DiT-XL-2-256x256.pt models/dit_xl_2 --config official.json
  python train_scripts/convert.py var_vqvae vae_ch160v4096z32.pth models/var_tokenizer
  python train_scripts/convert.py var var_d16.pth models/var_d16 --config official.json \\
         --tokenizer models/var_tokenizer
The second is a tokenizer for `{name: pretrained, path: models/var_tokenizer}`, the third a
generator that can be sampled.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("layout", help="published layout, such as dit")
    parser.add_argument("checkpoint", help=".pt, .pth or .safetensors file")
    parser.add_argument("folder", help="model folder to write")
    parser.add_argument(
        "--config", help="JSON file: constructor arguments of the released class (default: none)"
    )
    parser.add_argument("--tokenizer", help="of var and mvar: the folder of a converted var_vqvae")
    parser.add_argument(
        "--use", choices=("ema", "model"), default="ema", help="part of a training checkpoint"
    )
    args = parser.parse_args()

    from genvis.checkpoint import check_target, read_json
    from genvis.integrations.official import (
        check_tokenizer,
        from_official,
        load_official_file,
        save_official,
    )

    check_target(args.folder)
    check_tokenizer(args.layout, args.tokenizer)
    official = {} if args.config is None else read_json(args.config)
    if not isinstance(official, dict):
        raise ValueError(f"{args.config}: expected a mapping, got {type(official).__name__}")
    content = load_official_file(args.checkpoint)
    net = from_official(args.layout, content, official, args.use)
    save_official(net, args.folder, args.tokenizer)
    weights = sum(p.numel() for p in net.parameters())
    print(f"{args.folder}: {type(net).__name__}, {weights:,} parameters")


if __name__ == "__main__":
    console.run(main)

"""End-to-end images per second: PNG files to FID-Inception statistics, genvis and clean-fid.

Example: OMP_NUM_THREADS=1 python benchmarks/evaluate.py --count 96 --side 256
Weights are random, in the published layout: they cost what the published ones cost. Both read the
same files, resize them in the same way, run the same network and end with a mean and a covariance.
Needs clean-fid, which is given its features from the network here, as it would fetch its own.
"""

from genvis import console


def main() -> None:
    parser = console.parser(__doc__)
    parser.add_argument("--count", type=int, default=96, help="images")
    parser.add_argument("--side", type=int, default=256, help="their width and height")
    parser.add_argument("--chunk", type=int, default=32, help="images at once, for both")
    args = parser.parse_args()

    import json
    import tempfile
    import time
    from pathlib import Path

    import numpy as np
    import torch
    from cleanfid import fid
    from torch import Tensor

    from genvis.devices import processes
    from genvis.evaluation.observe import observe
    from genvis.evaluation.sources import Making, source_of
    from genvis.features.inception import Inception
    from genvis.features.inception_net import InceptionNet
    from genvis.images import png
    from genvis.random import HashKeys

    net = InceptionNet().to(processes().device)
    for name, value in net.named_parameters():
        fan = 100 if name.endswith("bias") else value[0].numel() / 2
        noise = HashKeys.of(0, [value.numel()]).normal(value.shape)[0]
        value.copy_(noise / fan**0.5)
    extractor = Inception(net, "0" * 64, weights="random")

    def network(pixels: Tensor) -> Tensor:
        return net.pool((pixels - 128) / 128)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "images")
        folder.mkdir()
        for i in range(args.count):
            noise = HashKeys.of(1, [i]).uniform((3, args.side, args.side))[0]
            (folder / f"{i:06d}.png").write_bytes(png((256 * noise).to(torch.uint8)))
        extractor(torch.zeros(args.chunk, 3, args.side, args.side))  # warm

        start = time.perf_counter()
        images = source_of(folder).open(Making(), args.chunk)
        seen = observe(images, extractor, Path(temporary, "out"), chunk=args.chunk)
        ours = seen.statistics("features")
        middle = time.perf_counter()
        theirs = fid.get_folder_features(
            str(folder), network, num_workers=0, batch_size=args.chunk, verbose=False,
            device=processes().device, mode="clean",
        )  # fmt: skip
        mean, covariance = theirs.mean(0), np.cov(theirs, rowvar=False)
        end = time.perf_counter()
    scale = float(np.abs(covariance).max())
    found = {
        "images_per_s": round(args.count / (middle - start), 2),
        "clean_fid_images_per_s": round(args.count / (end - middle), 2),
        "mean_difference": float(np.abs(ours.mean.numpy() - mean).max()),
        "covariance_difference": float(np.abs(ours.covariance.numpy() - covariance).max()) / scale,
        "count": args.count,
        "side": args.side,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    console.run(main)

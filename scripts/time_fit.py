"""Seconds and PSNR of one fit of table 3 (AIRe, [512]^3, 5,000 epochs) at several precisions: what a row of it costs.

python scripts/time_fit.py --data div2k --image 03.png --precisions medium high highest
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import torch

from aire_nerfstudio.data.picture import read_picture
from aire_nerfstudio.machine import machine
from aire_nerfstudio.reproduce.experiment import Choice
from aire_nerfstudio.reproduce.experiments import make_experiment
from aire_nerfstudio.reproduce.image_fit import fit_image, load_picture


def main() -> None:
    """Fit, print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--image", required=True, help="file in it")
    parser.add_argument("--precisions", nargs="+", default=["medium", "high", "highest"])
    parser.add_argument("--variants", nargs="+", default=["aire"], help="of AIRe's, large, small...")
    parser.add_argument("--activation", default="siren")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="other than the paper's 5,000")
    parser.add_argument("--side", type=int, help="reduce the picture to so many pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    read_picture(given.data / given.image)
    fits = make_experiment("images-table3", Choice("paper", (given.image,), (0,), ())).fits()
    changed = {name: getattr(given, name) for name in ("epochs", "side") if getattr(given, name) is not None}
    is_cuda = given.device.startswith("cuda")
    print(" | ".join(f"{name} {value}" for name, value in machine(given.device).items()))
    for variant in given.variants:
        fit = next(f for f in fits if f.variant == variant and f.activation == given.activation)
        for seed, precision in itertools.product(given.seeds, given.precisions):
            fit = replace(fit, seed=seed, **changed)
            torch.set_float32_matmul_precision(precision)
            done = fit_image(fit, load_picture(fit, given.data), given.device, cuda_graph=is_cuda).figures
            print(
                f"{fit.label}, {precision}{', graph' if is_cuda else ''}: {done['steps']:,} steps in "
                f"{done['seconds']:.1f} s, {1e3 * done['seconds'] / done['steps']:.3f} ms a step; PSNR "
                f"{done['psnr_train']:.2f} train, {done['psnr_test']:.2f} test; {done['parameters']:,} parameters",
                flush=True,
            )


if __name__ == "__main__":
    main()

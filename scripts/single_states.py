"""How far the score of a surface depends on the step at which training happens to stop, and what an average scores.

``python scripts/single_states.py bunny.ply --variant aire --seed 0``: a fit of table 6 (SIREN), looked at now and then
in its last steps; chamfer distance times 100 of the network as it is and of a running average of its weights, as
``ns-eval`` gives it (a shape's longest side spans [-0.9, 0.9]).
"""

import argparse
import copy
import statistics
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from aire_nerfstudio.analysis.iso_surface import extract_mesh
from aire_nerfstudio.analysis.surface_metrics import compare_surfaces
from aire_nerfstudio.data.surface import read_surface
from aire_nerfstudio.reproduce import surface_fit
from aire_nerfstudio.reproduce.experiment import Choice
from aire_nerfstudio.reproduce.experiments import make_experiment

# How many steps before the first look an average begins.
WARM_UP = 200


class Looks:
    """Stands in for the loss of a fit, which is asked once a step, and looks at the network on the way."""

    def __init__(self, loss, surface, steps, resolution, shares):
        self._loss, self._surface, self._resolution, self._steps = loss, surface, resolution, steps
        self._step, self._averages, self.rows = 0, dict.fromkeys(shares), []

    def __call__(self, network, *batch):
        """The loss of a step."""
        if self._step >= self._steps.start - WARM_UP:
            self._follow(network)
        if self._step in self._steps:
            self.rows.append([self._chamfer(n) for n in (network, *self._averages.values())])
            print(f"step {self._step:,}: {', '.join(f'{value:.3f}' for value in self.rows[-1])}", flush=True)
        self._step += 1
        return self._loss(network, *batch)

    @torch.no_grad()
    def _follow(self, network):
        for share, average in self._averages.items():
            if average is None or average.widths != network.widths:
                self._averages[share] = copy.deepcopy(network).requires_grad_(False)
            for mean, value in zip(self._averages[share].parameters(), network.parameters(), strict=True):
                mean.lerp_(value, share)

    def _chamfer(self, network):
        mesh = extract_mesh(lambda x: network(x).squeeze(-1), self._resolution)
        if len(mesh[1]) == 0:
            return float("nan")
        return 100 * compare_surfaces(mesh, (self._surface.vertices, self._surface.faces)).chamfer


def main():
    """Fit and look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", type=Path)
    parser.add_argument("--variant", default="aire")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", default="paper", choices=("smoke", "cpu", "paper"))
    parser.add_argument("--last", type=int, default=400, help="steps before the end in which it is looked")
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument(
        "--shares",
        type=float,
        nargs="*",
        default=(0.05, 0.02),
        help="by which a step moves an average (ns-train: 0.05)",
    )
    parser.add_argument("--resolution", type=int, default=256)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    surface = read_surface(args.shape)
    choice = Choice(args.budget, (args.shape.name,), (args.seed,))
    fits = make_experiment("sdf-table6", choice).fits()
    fit = next((f for f in fits if f.variant == args.variant and f.activation == "siren"), None)
    if fit is None:
        parser.error(f"--variant {args.variant} is not in table 6; it has {sorted({f.variant for f in fits})}")
    total = surface_fit.surface_steps(fit.epochs, len(surface.points), fit.on_surface)
    last = min(args.last, total - 1)
    looks = Looks(surface_fit._terms, surface, range(total - last, total, args.every), args.resolution, args.shares)
    surface_fit._terms = looks
    columns = ["as it is", *(f"averaged by {share:g}" for share in args.shares)]
    print(f"{fit.label}: {total:,} steps, looking at the last {last:,}: {', '.join(columns)}", flush=True)
    surface_fit.fit_surface(replace(fit, resolution=64), surface)
    for name, values in zip(columns, zip(*looks.rows, strict=True), strict=True):
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: {statistics.fmean(values):.3f} +- {spread:.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()

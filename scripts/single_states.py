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

# The share by which a step moves the average, and before how many steps of the first look it begins.
SHARE, WARM_UP = 0.02, 200


class Looks:
    """Stands in for the loss of a fit, which is asked once a step, and looks at the network on the way."""

    def __init__(self, loss, surface, total, last, every, resolution):
        self._loss, self._surface, self._resolution = loss, surface, resolution
        self._steps = range(total - last, total, every)
        self._step, self._average, self.rows = 0, None, []

    def __call__(self, network, *batch):
        """The loss of a step."""
        if self._step >= self._steps.start - WARM_UP:
            self._follow(network)
        if self._step in self._steps:
            self.rows.append((self._chamfer(network), self._chamfer(self._average)))
            print(f"step {self._step:,}: as it is {self.rows[-1][0]:.3f}, averaged {self.rows[-1][1]:.3f}", flush=True)
        self._step += 1
        return self._loss(network, *batch)

    @torch.no_grad()
    def _follow(self, network):
        if self._average is None or self._average.widths != network.widths:
            self._average = copy.deepcopy(network).requires_grad_(False)
        for mean, value in zip(self._average.parameters(), network.parameters(), strict=True):
            mean.lerp_(value, SHARE)

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
    looks = Looks(surface_fit._terms, surface, total, last, args.every, args.resolution)
    surface_fit._terms = looks
    print(f"{fit.label}: {total:,} steps, looking at the last {last:,}", flush=True)
    surface_fit.fit_surface(replace(fit, resolution=64), surface)
    for name, values in zip(("as it is", "averaged"), zip(*looks.rows, strict=True), strict=True):
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: {statistics.fmean(values):.3f} +- {spread:.3f} ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    main()

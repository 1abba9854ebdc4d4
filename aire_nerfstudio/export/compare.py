"""``aire-export compare``: how far two learned surfaces, or flows at the same moments, are apart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.export.files import config_of, load_model
from aire_nerfstudio.files import check_place, write_whole


@dataclass
class ExportCompare:
    """Compare the surfaces of two aire-sdf or aire-flow runs of the same shape, in the cube [-1, 1]^3."""

    load_config: Path
    """The one run's folder, or its config.yml."""
    other_config: Path
    """The other's."""
    output_path: Path | None = None
    """JSON file to write beside the table; None: the table alone."""
    times: tuple[float, ...] = (0.0, 0.1, 0.2)
    """Of flows: moments at which to compare."""
    resolution: int = 256
    """Grid points a side."""

    def main(self) -> None:
        """Extract, compare, print."""
        self.load_config = config_of(self.load_config)
        self.other_config = config_of(self.other_config, "--other-config")
        if self.output_path is not None:
            check_place("--output-path", self.output_path)
        if self.resolution < 2 or not self.times:
            raise InputError(f"--resolution {self.resolution} must be at least 2, and --times must name a moment")
        # Only now: nerfstudio takes seconds to import, and what was wrong so far is said without it.
        from aire_nerfstudio.analysis.surface_metrics import compare_surfaces
        from aire_nerfstudio.models.flow import FlowModel, is_same_place
        from aire_nerfstudio.models.sdf import SdfModel

        one, other = (
            load_model(config, SdfModel, "compare", "aire-sdf and aire-flow", option)
            for option, config in (("--load-config", self.load_config), ("--other-config", self.other_config))
        )
        places = [(model.centre.cpu().numpy(), float(model.scale)) for model in (other, one)]
        if not is_same_place(*places[0], *places[1]):
            raise InputError(
                f"{self.load_config} and {self.other_config} are of shapes of another place or size; each has a cube "
                "of its own, so that nothing can be compared"
            )
        flows = [isinstance(model, FlowModel) for model in (one, other)]
        moments = self.times if any(flows) else (None,)
        rows = []
        for moment in moments:
            meshes = []
            for model, config in ((one, self.load_config), (other, self.other_config)):
                model.eval()
                if isinstance(model, FlowModel) and moment is not None:
                    model.time = moment
                meshes.append(model.mesh(self.resolution))
                if len(meshes[-1][1]) == 0:
                    at = "" if moment is None else f" at time {moment:g}"
                    raise InputError(f"{config} has no surface{at}; there is nothing to compare")
            found = compare_surfaces(*meshes)
            rows.append({"time": moment, **found._asdict()})
            label = "" if moment is None else f"t = {moment:g} | "
            print(
                f"{label}chamfer x 100 {100 * found.chamfer:.4g} | Hausdorff {found.hausdorff:.4g} | normals "
                f"{found.normal_consistency:.4f}"
            )
        if self.output_path is not None:
            write_whole(self.output_path, lambda name: _write(Path(name), rows))


def _write(path: Path, rows: list[dict[str, float | None]]) -> None:
    path.write_text(json.dumps(rows, indent=1))

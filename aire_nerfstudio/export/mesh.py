"""``aire-export mesh``: the surface that a run learned, in the units of the file it was given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.export.files import bar, config_of, load_model
from aire_nerfstudio.files import check_place

FORMATS = (".ply", ".obj", ".stl", ".glb")


@dataclass
class ExportMesh:
    """Write the surface that an aire-sdf run learned, by marching cubes."""

    load_config: Path
    """The run's folder, or its config.yml."""
    output_path: Path
    """File to write: .ply, .obj, .stl or .glb."""
    resolution: int = 512
    """Grid points a side."""
    time: float | None = None
    """Of a flow: the moment to export; None: the one that the run was configured with."""
    quiet: bool = False
    """Print errors only."""
    in_cube: bool = False
    """Leave the surface in the cube [-1, 1]^3 instead of the units of the file that was learned."""

    def main(self) -> None:
        """Extract and write."""
        self.load_config = config_of(self.load_config)
        if self.output_path.suffix.lower() not in FORMATS:
            raise InputError(f"--output-path {self.output_path} is not one of {', '.join(FORMATS)}; choose one")
        check_place("--output-path", self.output_path)
        if self.resolution < 2:
            raise InputError(f"--resolution is {self.resolution}; it must be at least 2 grid points a side")
        # Only now: nerfstudio takes seconds to import, and what was wrong so far is said without it.
        from aire_nerfstudio.data.mesh_file import write_mesh
        from aire_nerfstudio.models.flow import FlowModel
        from aire_nerfstudio.models.sdf import SdfModel

        model = load_model(self.load_config, SdfModel, "mesh", "aire-sdf and aire-flow")
        model.eval()
        if self.time is not None:
            if not isinstance(model, FlowModel):
                raise InputError(f"--time is {self.time}, but {self.load_config} is a surface, which has no time")
            model.time = self.time
        with bar("surface", self.quiet) as progress:
            vertices, faces = model.mesh(self.resolution, progress)
        if len(faces) == 0:
            raise InputError(
                f"{self.load_config}: the network has no surface in the cube at --resolution {self.resolution}; raise "
                "it, or train longer"
            )
        normals = model.vertex_normals(vertices)
        if not self.in_cube:
            vertices = model.in_file_units(vertices)
        write_mesh(vertices, faces, normals, self.output_path)
        if not self.quiet:
            print(f"wrote {self.output_path}: {len(vertices):,} vertices, {len(faces):,} faces")

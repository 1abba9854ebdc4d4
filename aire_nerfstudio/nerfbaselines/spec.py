"""What NerfBaselines lists: found through the entry-point group ``nerfbaselines.specs``."""

from __future__ import annotations

from typing import Any

from nerfbaselines import register

METHODS = ("aire-siren", "aire-finer", "aire-spder")


def spec(method: str) -> dict[str, Any]:
    """The entry of one method, with the paper's variants as presets."""
    activation = method.removeprefix("aire-").upper()
    return {
        "id": method,
        "method_class": f"aire_nerfstudio.nerfbaselines.method:{method.title().replace('-', '')}",
        "metadata": {
            "name": f"AIRe ({activation})",
            "description": f"NeRF of {activation} networks whose density network changes its own size while it trains.",
            "paper_title": "Adaptive Training of INRs via Pruning and Densification",
            "licenses": [{"name": "Apache-2.0"}],
        },
        "presets": {
            "blender": {"@apply": [{"dataset": "blender"}], "pipeline.datamanager.dataparser": "blender-data"},
            "large": {"@description": "The starting network, never changed.", "pipeline.model.variant": "large"},
            "small": {"@description": "The final size from the start.", "pipeline.model.variant": "small"},
            "early": {"@description": "All moments early in the run.", "pipeline.model.variant": "aire_early"},
        },
        "implementation_status": {"blender": "working"},
    }


for _method in METHODS:
    register(spec(_method))  # type: ignore[arg-type]

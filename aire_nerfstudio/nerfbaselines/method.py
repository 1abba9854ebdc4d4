"""NerfBaselines' own adapter of nerfstudio, for these methods."""

from __future__ import annotations

from typing import Any

from nerfbaselines.methods.nerfstudio import NerfStudio


class AireMethod(NerfStudio):
    """Reads scenes as Blender's: the adapter knows nerfstudio's own dataparsers only."""

    def __init__(self, *, config_overrides: dict[str, Any] | None = None, **options: Any) -> None:
        overrides = {"pipeline.datamanager.dataparser": "blender-data", "report": False, **(config_overrides or {})}
        super().__init__(config_overrides=overrides, **options)


class AireSiren(AireMethod):
    """``aire-siren``."""

    _default_nerfstudio_name = "aire-siren"


class AireFiner(AireMethod):
    """``aire-finer``."""

    _default_nerfstudio_name = "aire-finer"


class AireSpder(AireMethod):
    """``aire-spder``."""

    _default_nerfstudio_name = "aire-spder"

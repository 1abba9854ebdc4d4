"""NerfBaselines' own adapter of nerfstudio, for these methods."""

from __future__ import annotations

from typing import Any

from nerfbaselines.methods.nerfstudio import NerfStudio


class AireMethod(NerfStudio):
    """Reads scenes as Blender's: the adapter knows nerfstudio's own dataparsers only."""

    _loaded_step: int | None

    def __init__(self, *, config_overrides: dict[str, Any] | None = None, **options: Any) -> None:
        overrides = {"pipeline.datamanager.dataparser": "blender-data", "report": False, **(config_overrides or {})}
        super().__init__(config_overrides=overrides, **options)
        if self._loaded_step is not None:
            self._loaded_step = self.step = self._loaded_step + 1

    def _patch_config(self, config: Any, **options: Any) -> Any:
        config = super()._patch_config(config, **options)
        if self._loaded_step is not None:
            # A finished run is loaded to be rendered; our trainer would refuse to go on with it.
            config.max_num_iterations = max(config.max_num_iterations, self._loaded_step + 2)
        return config

    def save(self, path: str) -> None:
        """As the adapter's, under nerfstudio's number of the last step: the adapter counts steps done."""
        done = self.step
        self.step = max(0, done - 1)
        try:
            super().save(path)
        finally:
            self.step = done


class AireSiren(AireMethod):
    """``aire-siren``."""

    _default_nerfstudio_name = "aire-siren"


class AireFiner(AireMethod):
    """``aire-finer``."""

    _default_nerfstudio_name = "aire-finer"


class AireSpder(AireMethod):
    """``aire-spder``."""

    _default_nerfstudio_name = "aire-spder"

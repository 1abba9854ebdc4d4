"""The data parsers that nerfstudio finds by entry point."""

from nerfstudio.plugins.registry_dataparser import DataParserSpecification

from aire_nerfstudio.data.blender_scene import BlenderSceneConfig

aire_blender = DataParserSpecification(
    config=BlenderSceneConfig(), description="Blender-format scene, checked before use; default: the demo scene."
)

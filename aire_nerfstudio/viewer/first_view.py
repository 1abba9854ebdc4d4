"""Where a browser that connects looks from."""

from __future__ import annotations

import numpy as np
import viser
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
from scipy.spatial.transform import Rotation

# Beside and behind the camera: in its very place, the picture drawn before it would hide the scene.
ASIDE_DEGREES, BACK = 15.0, 1.15


def look_from_first_view(client: viser.ClientHandle, cameras: Cameras) -> None:
    """Look at the scene from beside the first training camera; viser's own start may lie inside it.

    Args:
        client: the browser.
        cameras: the training cameras; the scene is about the origin.
    """
    pose = cameras.camera_to_worlds[0].double().cpu().numpy()
    position, up, backwards = pose[:, 3], pose[:, 1], pose[:, 2]
    # What is orbited: the point in front of the camera at the origin's depth.
    target = position - max(float(position @ backwards), 1e-3) * backwards
    turn = Rotation.from_rotvec(np.deg2rad(ASIDE_DEGREES) * up)
    with client.atomic():
        client.camera.up_direction = up
        client.camera.position = VISER_NERFSTUDIO_SCALE_RATIO * (target + BACK * turn.apply(position - target))
        client.camera.look_at = VISER_NERFSTUDIO_SCALE_RATIO * target

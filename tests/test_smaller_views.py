"""Views at fewer pixels: the camera and the averaged picture cover the same field."""

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from PIL import Image
from skimage.data import astronaut
from torch.nn.functional import grid_sample

from aire_nerfstudio.compare.scoring import read_over_white
from aire_nerfstudio.data.picture import read_picture
from aire_nerfstudio.data.smaller_views import shrink_camera, shrink_picture
from aire_nerfstudio.models.image_metrics import psnr


def _camera(width, height):
    return Cameras(
        camera_to_worlds=torch.eye(4)[None, :3], fx=0.8 * width, fy=0.8 * width, cx=0.52 * width, cy=0.47 * height,
        width=width, height=height,
    )  # fmt: skip


def _perfect(picture, small, large, rays=6):
    """What an ideal renderer of the small camera sees of a picture on the large one's image plane."""

    def along(count, centre, focal, old_centre, old_focal, old):
        pixels = (torch.arange(count * rays) + 0.5) / rays
        return 2 * ((pixels - centre) / focal * old_focal + old_centre) / old - 1

    names = ("cx", "fx"), ("cy", "fy")
    sides = (int(small.width), int(large.width)), (int(small.height), int(large.height))
    x, y = (
        along(new, *(float(getattr(camera, n)) for camera in (small, large) for n in name), old)
        for name, (new, old) in zip(names, sides, strict=True)
    )
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]
    seen = grid_sample(picture.permute(2, 0, 1)[None], grid, align_corners=False, padding_mode="border")[0]
    rows, columns = sides[1][0], sides[0][0]
    return seen.permute(1, 2, 0).reshape(rows, rays, columns, rays, 3).mean((1, 3))


@pytest.mark.parametrize("size", [(1297, 840), (979, 546), (545, 978), (800, 800)])
@pytest.mark.parametrize("longest", [256, 400])
def test_a_perfect_render_of_a_smaller_view_scores_high(size, longest, tmp_path):
    Image.fromarray(astronaut()).resize(size).save(tmp_path / "large.png")
    picture = read_picture(tmp_path / "large.png").floats()
    large = _camera(*size)
    small = large[:1]
    shrink_camera(small, longest)
    assert max(int(small.width), int(small.height)) == longest
    assert (int(large.width), int(large.height)) == size
    seen = _perfect(picture, small, large)
    truth = shrink_picture(picture, tuple(seen.shape[:2]))
    assert psnr(seen, truth) > 45
    assert torch.allclose(read_over_white(tmp_path / "large.png", *seen.shape[1::-1]), truth, atol=1e-6)


def test_means_are_by_area_and_alpha():
    grey = torch.tensor([0.0, 3.0, 6.0]).reshape(1, 3, 1)
    assert torch.allclose(shrink_picture(grey, (1, 2)).flatten(), torch.tensor([1.0, 5.0]))
    assert torch.equal(shrink_picture(grey, (1, 3)), grey)
    clear = torch.tensor([[1.0, 0, 0, 1.0], [0, 1.0, 0, 0.0]]).reshape(1, 2, 4)
    assert torch.allclose(shrink_picture(clear, (1, 1)).flatten(), torch.tensor([1.0, 0, 0, 0.5]))
    noise = torch.from_numpy(np.random.default_rng(0).random((37, 53, 3)))
    small = shrink_picture(noise, (11, 29))
    assert torch.allclose(small.mean((0, 1)), noise.mean((0, 1)))


def test_a_view_that_is_small_enough_stays():
    camera = _camera(40, 30)
    before = camera.fx
    for longest in (None, 40, 41):
        shrink_camera(camera, longest)
    assert camera.fx is before
    sliver = _camera(3000, 2)
    shrink_camera(sliver, 300)
    assert (int(sliver.width), int(sliver.height)) == (300, 1)

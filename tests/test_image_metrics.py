"""PSNR and SSIM against their definitions; LPIPS is left out, with one warning, where its weights cannot be had."""

import math

import pytest
import torch

from aire_nerfstudio.models import image_metrics


@pytest.fixture
def _no_weights(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    image_metrics._lpips.cache_clear()
    yield
    image_metrics._lpips.cache_clear()


@pytest.mark.usefixtures("_no_weights")
def test_offline_lpips_is_left_out_with_one_warning(capsys):
    image = torch.rand(40, 33, 3)
    first, second = (image_metrics.image_metrics(image, image * 0.9) for _ in range(2))
    assert first == second
    assert set(first) == {"psnr", "ssim"}
    assert capsys.readouterr().out.count("LPIPS is left out") == 1


@pytest.mark.usefixtures("_no_weights")
def test_psnr_and_ssim():
    image = torch.linspace(0, 0.9, 30 * 20 * 3).reshape(30, 20, 3)
    metrics = image_metrics.image_metrics(image + 0.1, image)
    assert metrics["psnr"] == pytest.approx(20, abs=1e-4)
    assert image_metrics.image_metrics(image, image)["ssim"] == pytest.approx(1)
    assert math.isinf(image_metrics.image_metrics(image, image)["psnr"])
    assert metrics["ssim"] < 1


@pytest.mark.parametrize(("side", "names"), [(5, {"psnr"}), (6, {"psnr", "ssim"}), (30, {"psnr", "ssim"})])
def test_small_pictures_get_the_scores_that_exist_for_them(side, names):
    image = torch.rand(side, 40, 3)
    assert set(image_metrics.image_metrics(image, image * 0.9)) == names

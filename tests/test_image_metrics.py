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


@pytest.mark.parametrize("size", [(64, 50), (37, 200), (6, 40), (100, 7), (13, 11)])
@pytest.mark.parametrize("at_once", [1, 300, 1000])
def test_ssim_in_bands_is_that_of_the_whole(size, at_once, monkeypatch):
    torch.manual_seed(0)
    truth = torch.rand(1, 3, *size)
    render = (truth + 0.1 * torch.randn(1, 3, *size)).clamp(0, 1)
    monkeypatch.setattr(image_metrics, "PIXELS_AT_ONCE", at_once)
    whole = image_metrics.structural_similarity_index_measure(render, truth, data_range=1.0)
    assert image_metrics._ssim(render, truth) == pytest.approx(float(whole), abs=1e-6)


def test_lpips_that_memory_does_not_hold_is_left_out(monkeypatch, capsys):
    monkeypatch.setattr(image_metrics, "_lpips", lambda: lambda a, b: torch.tensor(0.5))
    image = torch.rand(40, 33, 3)
    assert image_metrics.image_metrics(image, image)["lpips"] == 0.5
    monkeypatch.setattr(image_metrics, "BYTES_OF_LPIPS", 1 << 40)
    assert "lpips" not in image_metrics.image_metrics(image, image)
    assert "LPIPS is left out of a picture of 33 x 40" in capsys.readouterr().out

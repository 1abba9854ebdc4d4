"""The documentation builds strictly and without network, and names only options that exist."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nerfstudio.configs.method_configs import all_methods

from aire_nerfstudio.adaptation import importance
from aire_nerfstudio.adaptation.aire_config import AireConfig
from aire_nerfstudio.fields.sine_mlp import SineMLP, widths_in

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_site_builds_and_asks_the_network_for_nothing(tmp_path):
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install -e '.[dev]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    home = (tmp_path / "site" / "index.html").read_text("utf8")
    loaded = re.findall(r"""<(?:script|img|link)[^>]+(?:src|href)=["']?(https?:[^"'\s>]+)""", home)
    assert [url for url in loaded if "canonical" not in url] == []
    reference = (tmp_path / "site" / "reference" / "fields.html").read_text("utf8")
    assert "SineMLP" in reference
    assert "mean_square_step" in reference


def _fields(prefix):
    """Options behind ``prefix`` of all our methods."""
    names = set()
    for name, config in all_methods.items():
        if name.startswith("aire-"):
            part = getattr(config.pipeline, prefix)
            names |= {field.name for field in dataclasses.fields(part)}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_the_text_exist(page):
    text = page.read_text("utf8")
    # Other methods' options stand in commands that name them.
    known = {"model": _fields("model"), "datamanager": _fields("datamanager")}
    for part, name in re.findall(r"--pipeline\.(model|datamanager)\.([a-z-]+)", text):
        assert name.replace("-", "_") in known[part], f"--pipeline.{part}.{name}"
    adaptation = {field.name for field in dataclasses.fields(AireConfig)}
    for name in re.findall(r"--pipeline\.model\.adaptation\.([a-z-]+[a-z])", text):
        assert name.replace("-", "_") in adaptation, name


def test_the_librarys_loop_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "howto" / "library.md").read_text("utf8"), re.DOTALL)
    names = {}
    exec(code, names)
    assert capsys.readouterr().out.splitlines() == [
        "30 densify [64, 48]", "120 decay [64, 48]", "300 prune [34, 28]"
    ]  # fmt: skip
    assert float(names["error"]) < 0.01
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    network = SineMLP(2, widths_in(saved["network"]), 1)
    network.load_state_dict(saved["network"])
    assert network.widths == [34, 28]
    torch.testing.assert_close(network(names["x"]), names["network"](names["x"]))
    assert names["strategy"].restore(saved["adaptation"]).is_pruned


def test_the_page_on_ones_own_parts_runs_as_it_stands(capsys):
    names = {}
    text = (ROOT / "docs" / "howto" / "extend.md").read_text("utf8")
    try:
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(code, names)
    finally:
        importance._own.pop("both_sides", None)
    assert capsys.readouterr().out.splitlines()[:5] == [
        "decay (40, 30) (40, 30)",
        "prune (40, 30) (28, 22)",
        "prune (28, 22) (27, 22)",
        "prune (27, 22) (26, 22)",
        "prune (26, 22) (25, 22)",
    ]
    assert [layer.out_features for layer in names["layers"]] == [25, 22, 1]
    assert float(names["loss"]) < 0.1
    assert names["my_method"].config.pipeline.model.adaptation.criterion == "both_sides"
    assert names["aire_image_siren"].config.pipeline.model.adaptation.criterion == "l1"

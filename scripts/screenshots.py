"""Make the documentation's pictures: ``python scripts/screenshots.py [image nerf sdf flow report]``.

Needs Chromium and playwright (``pip install -e '.[dev]'``); trains each task at the tutorial's size until its neurons
decay. The pictures go to docs/images.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from viewer_page import FLAGS, ViewerPage, chromium, training, wait_for  # noqa: E402

SIZE = (1500, 1040)
# As in docs/tutorial; the schedules begin early, and the run is long enough to be looked at.
RUNS: dict[str, list[str]] = {
    "image": [
        *("aire-image-siren", "--pipeline.model.widths", "128", "128", "128"),
        *("--pipeline.datamanager.train-num-rays-per-batch", "16384"),
    ],
    "nerf": [
        *("aire-siren", "--pipeline.datamanager.train-num-rays-per-batch", "2048"),
        *("--pipeline.model.density-widths", "96", "96", "96", "--pipeline.model.colour-widths", "64", "64"),
        *("--pipeline.model.n-features", "48", "--pipeline.model.hidden-omega", "20"),
        *("--pipeline.model.grid-resolution", "64", "--pipeline.model.max-steps-per-ray", "256"),
        *("--pipeline.model.grid-decay", "0.8", "--optimizers.fields.optimizer.lr", "1e-3"),
        *("--pipeline.model.adaptation.densify-at", "10", "--pipeline.model.adaptation.densify-count", "32"),
    ],
    "sdf": [
        *("aire-sdf-siren", "--pipeline.model.widths", "64", "64", "64", "--pipeline.model.first-omega", "30"),
        *("--pipeline.model.hidden-omega", "30", "--pipeline.datamanager.on-surface", "4000"),
        *("--pipeline.datamanager.off-surface", "4000", "--pipeline.datamanager.pool", "100000"),
        *("--optimizers.fields.optimizer.lr", "1e-3", "--optimizers.fields.scheduler.final-ratio", "0.1"),
    ],
    "flow": [
        *("aire-flow-siren", "--pipeline.model.widths", "64", "64", "64", "--pipeline.model.first-omega", "30"),
        *("--pipeline.model.hidden-omega", "30", "--pipeline.datamanager.on-surface", "2000"),
        *("--pipeline.datamanager.off-surface", "2000", "--pipeline.datamanager.pool", "100000"),
        *("--optimizers.fields.optimizer.lr", "1e-3", "--optimizers.fields.scheduler.final-ratio", "0.1"),
    ],
}
ITERATIONS = 1500
# Share of the run at which the picture is taken: well within the decay.
MOMENT = {"image": 0.55, "nerf": 0.3, "sdf": 0.3, "flow": 0.3}


def keep(path: Path, target: Path) -> None:
    """A screenshot with 255 colours: a third of the bytes."""
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(255, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"wrote {target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Take the pictures that are named, or all."""
    browser_path = chromium()
    if browser_path is None:
        raise SystemExit("error: no Chromium; apt-get install chromium")
    wanted = sys.argv[1:] or [*RUNS, "report"]
    unknown = set(wanted) - {*RUNS, "report"}
    if unknown:
        raise SystemExit(f"error: there is no picture {sorted(unknown)}; choose from {', '.join([*RUNS, 'report'])}")
    with sync_playwright() as p, tempfile.TemporaryDirectory() as folder:
        browser = p.chromium.launch(executable_path=browser_path, args=FLAGS)
        shot = Path(folder) / "shot.png"
        for task in RUNS:
            if task not in wanted and not (task == "image" and "report" in wanted):
                continue
            options = ["--viewer.quit-on-train-completion", "True"]
            with training(RUNS[task], folder, *options, iterations=ITERATIONS) as (port, run, process):
                page = ViewerPage(browser, port, SIZE)
                page.tab("AIRe")
                page.page.get_by_role("button", name="Hide Train Cams").click()
                at = MOMENT[task] * ITERATIONS
                wait_for(lambda page=page, at=at: (page.step() or 0) > at, 600, page.text)
                page.page.get_by_role("button", name="Pause Training").click()
                page.page.wait_for_timeout(6000)
                page.page.screenshot(path=str(shot))
                page.page.get_by_role("button", name="Resume Training").click()
                if task in wanted:
                    keep(shot, ROOT / "docs" / "images" / f"viewer-{task}.png")
                if task == "image" and "report" in wanted:
                    process.wait(timeout=600)
                    page = browser.new_page(viewport={"width": 1000, "height": 1500})
                    page.goto((run / "report.html").as_uri())
                    page.screenshot(path=str(shot))
                    keep(shot, ROOT / "docs" / "images" / "report.png")
        browser.close()


if __name__ == "__main__":
    main()

"""The viewer as a user sees it: nerfstudio's page in a headless Chromium, on running trainings."""

import io
import shutil

import numpy as np
import pytest
import torch
from commands import run_command
from PIL import Image
from viewer_page import FLAGS, TINY, ViewerPage, chromium, training, wait_for

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium")

# How much of each plot of the panel its ancestors let through.
VISIBLE_HEIGHTS = """() => [...document.querySelectorAll('.js-plotly-plot')].filter(e => e.offsetHeight > 0).map(e => {
    let height = e.offsetHeight;
    for (let p = e.parentElement; p && !p.className.includes?.('ScrollArea'); p = p.parentElement)
        if (getComputedStyle(p).overflowY === 'hidden') height = Math.min(height, p.offsetHeight);
    return height;
})"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _no_page_goes_on(browser):
    """A page left open draws on."""
    yield
    for context in browser.contexts:
        context.close()


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float)


def _saved(run, step):
    return torch.load(run / "nerfstudio_models" / f"step-{step:09d}.ckpt", weights_only=True)["pipeline"]


@pytest.mark.parametrize("task", TINY)
def test_the_panel_shows_and_steers_a_training(task, browser, demo, tmp_path):
    with training(task, tmp_path) as (port, run, process):
        page = ViewerPage(browser, port)
        page.tab("AIRe")
        first = wait_for(page.step, 60, page.text)
        assert page.widths() == [24, 20]
        assert "train → " in page.text()
        wait_for(lambda: page.step() > first, 60, page.text)
        page.press("Prune now")
        page.answer("Prune now", "refused: no neurons are chosen; start their decay first")
        page.enter("Neurons", 3)
        page.press("Densify now")
        page.answer("Densify now", r"densify \[3, 0\]")
        wait_for(lambda: page.widths() == [27, 20], 30, page.text)
        page.enter("Neurons", 6)
        page.enter("Decay steps", 50_000)
        page.press("Start decay now")
        chosen = page.answer("Start decay now", r"decay \[\d+, \d+\]")
        page.press("Prune now")
        assert page.answer("Prune now", r"prune \[\d+, \d+\]")[5:] == chosen[5:]
        counts = [int(n) for n in chosen[7:-1].split(",")]
        left = [27 - counts[0], 20 - counts[1]]
        wait_for(lambda: page.widths() == left, 30, page.text)
        # Drawn: one picture a plot, with marks in it.
        assert wait_for(lambda: page.page.locator(".js-plotly-plot .main-svg").count() >= 3, 30, page.text)
        assert page.page.locator(".js-plotly-plot .bars .point").count() >= sum(left)
        # Seen: viser may draw what nobody can see.
        heights = page.page.evaluate(VISIBLE_HEIGHTS)
        assert len(heights) == 3
        assert min(heights) > 150
        page.press("Freeze schedule")
        page.answer("Freeze schedule", "the schedule stands still")
        page.page.get_by_role("button", name="Let schedule go on", exact=True).wait_for(timeout=20_000)
        page.press("Save checkpoint")
        step = int(page.answer("Save checkpoint", r"saved step [\d,]+").split()[-1].replace(",", ""))
        state = _saved(run, step)
        network = "density_net." if task == "nerf" else ""
        assert [len(state[f"_model.field.{network}layers.{i}.bias"]) for i in (0, 1)] == left
        assert state["_model._extra_state"]["is_frozen"]
        events = [(h["event"], h["by_hand"]) for h in state["_model._extra_state"]["history"]]
        assert events == [("densify", True), ("decay", True), ("prune", True), ("freeze", True)]
        if task in ("image", "sdf"):
            page.press("Export")
            page.answer("Export", r"wrote .*exports.*\.(png|ply)|refused: the network has no surface")
        if task == "flow":
            _the_time_slider_changes_the_picture(page)
        assert process.poll() is None
        assert page.errors == []


def _the_time_slider_changes_the_picture(page):
    page.page.get_by_role("button", name="Pause Training").click()
    page.tab("Control")
    page.page.get_by_role("button", name="Hide Train Cams").click()
    # The page settles: two looks in a row that agree.
    looks = [page.picture()]

    def settled():
        page.page.wait_for_timeout(1500)
        looks.append(page.picture())
        return np.abs(_pixels(looks[-1]) - _pixels(looks[-2])).mean() < 0.01

    wait_for(settled, 60, "the picture does not come to rest")
    before = _pixels(looks[-1])
    page.enter("Time", 0.2)
    wait_for(lambda: np.abs(_pixels(page.picture()) - before).mean() > 0.5, 60, "time does not change the picture")


def test_parts_can_be_looked_at(browser, tmp_path):
    with training("image", tmp_path) as (port, _, _):
        page = ViewerPage(browser, port)
        page.tab("AIRe")
        wait_for(page.step, 60, page.text)
        page.page.get_by_role("checkbox").last.click()
        page.tab("Control")
        wait_for(lambda: page.choices("Output type") >= {"important", "unimportant", "frequency"}, 60, page.text)
        assert page.errors == []


# Steps of a run that is watched: seconds, so that a page sees it before it is over.
WATCHED = 800


def test_who_watches_does_not_change_the_weights(browser, demo, tmp_path):
    """No viewer; a browser that leaves half-way; two browsers, one of which looks at the parts: equal to the bit."""
    ends = []
    for name, watchers in (("alone", 0), ("left", 1), ("two", 2)):
        folder = tmp_path / name
        folder.mkdir()
        options = ["--viewer.quit-on-train-completion", "True"]
        options += ["--vis", "viewer" if watchers else "tensorboard", "--steps-per-eval-batch", "1000000"]
        if watchers:
            # Started paused, so that every browser is there from the first step.
            with training("nerf", folder, *options, "--start-paused", "True", iterations=WATCHED) as (
                port,
                run,
                process,
            ):
                pages = [ViewerPage(browser, port) for _ in range(watchers)]
                pages[0].tab("AIRe")
                if watchers == 2:
                    pages[0].page.get_by_role("checkbox").last.click()
                pages[0].page.get_by_role("button", name="Resume Training").click()
                if watchers == 1:
                    wait_for(lambda page=pages[0]: (page.step() or 0) > 20, 60, pages[0].text)
                    pages[0].page.close()
                assert process.wait(200) == 0
        else:
            run = _finish("nerf", folder, options)
        ends.append(_saved(run, WATCHED - 1))
        shutil.rmtree(run / "nerfstudio_models")
    for other in ends[1:]:
        assert other.keys() == ends[0].keys()
        weights = [key for key in ends[0] if isinstance(ends[0][key], torch.Tensor)]
        assert weights
        assert all(torch.equal(ends[0][key], other[key]) for key in weights)
        assert torch.equal(
            ends[0]["_model._extra_state"]["record"]["columns"]["loss"],
            other["_model._extra_state"]["record"]["columns"]["loss"],
        )


def _finish(task, folder, options):
    method, *sizes = TINY[task]
    command = ["ns-train", method, "--output-dir", "outputs", "--experiment-name", "seen", "--timestamp", "run"]
    command += ["--max-num-iterations", str(WATCHED), "--logging.local-writer.enable", "False"]
    done = run_command(*command, *sizes, *options, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "outputs" / "seen" / method / "run"

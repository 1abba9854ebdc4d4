"""nerfstudio's viewer in a headless Chromium, and the trainings it watches."""

import contextlib
import re
import shutil
import socket
import time
from pathlib import Path

from commands import start_command

FLAGS = ["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"]
# Not ours: analytics and a logo that nerfstudio's page asks the network for, and a line that three.js prints on every
# viser page, an empty one included.
KNOWN = re.compile(r"googletagmanager|docs\.nerf\.studio|computeBoundingSphere\(\): Computed radius is NaN")

# A page draws its scene as often as it can, here on a processor that others need: four times a second.
CALM = """const draw = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (f) => window.setTimeout(() => draw(f), 250);
window.cancelAnimationFrame = (id) => window.clearTimeout(id);"""

TINY = {
    "image": [
        *("aire-image-siren", "--pipeline.model.widths", "24", "20"),
        *("--pipeline.datamanager.train-num-rays-per-batch", "512"),
    ],
    "nerf": [
        *("aire-siren", "--pipeline.model.density-widths", "24", "20", "--pipeline.model.colour-widths", "16"),
        *("--pipeline.model.n-features", "12", "--pipeline.model.grid-resolution", "32"),
        *("--pipeline.model.max-steps-per-ray", "64", "--pipeline.datamanager.train-num-rays-per-batch", "128"),
        *("--optimizers.fields.optimizer.lr", "1e-3"),
    ],
    "sdf": [
        *("aire-sdf-siren", "--pipeline.model.widths", "24", "20", "--pipeline.model.first-omega", "20"),
        *("--pipeline.model.hidden-omega", "10", "--pipeline.datamanager.on-surface", "300"),
        *("--pipeline.datamanager.off-surface", "300", "--pipeline.datamanager.pool", "3000"),
        *("--optimizers.fields.optimizer.lr", "1e-3"),
    ],
    "flow": [
        *("aire-flow-siren", "--pipeline.model.widths", "24", "20", "--pipeline.model.first-omega", "20"),
        *("--pipeline.model.hidden-omega", "10", "--pipeline.datamanager.on-surface", "300"),
        *("--pipeline.datamanager.off-surface", "300", "--pipeline.datamanager.pool", "3000"),
        *("--optimizers.fields.optimizer.lr", "1e-3", "--pipeline.model.alpha", "0.1"),
    ],
}


def chromium():
    """Path of the browser, or None."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def training(task, folder, *options, iterations=2_000_000):
    """A run of ``ns-train`` whose viewer answers; yields (port, run folder, process).

    It is so long that no machine comes to the first change of its schedule, a tenth of it, while a page loads.
    """
    port, run = free_port(), Path(folder) / "outputs"
    method, *sizes = TINY[task] if isinstance(task, str) else task
    log = Path(folder) / "train.log"
    process = start_command(
        *("ns-train", method, "--output-dir", run, "--experiment-name", "seen", "--timestamp", "run"),
        *("--max-num-iterations", iterations, "--viewer.websocket-port", port, "--steps-per-save", 1_000_000),
        *("--logging.local-writer.enable", "False", *sizes, *options),
        cwd=folder, out=log,
    )  # fmt: skip
    try:
        wait_for(lambda: _answers(port) or process.poll() is not None, 120, lambda: log.read_text()[-2000:])
        assert process.poll() is None, log.read_text()[-2000:]
        yield port, run / "seen" / method / "run", process
    finally:
        process.end()


def _answers(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, seconds, message):
    end = time.monotonic() + 3 * seconds  # on a quiet machine a tenth of it is enough
    while not (value := condition()):
        assert time.monotonic() < end, message() if callable(message) else message
        time.sleep(0.2)
    return value


class ViewerPage:
    """A browser page on the viewer."""

    def __init__(self, browser, port, size=(1400, 1000)):
        self.page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.page.set_default_timeout(120_000)
        self.page.add_init_script(CALM)
        self.errors = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"http://127.0.0.1:{port}")
        self.page.get_by_role("tab", name="AIRe").wait_for(timeout=60_000)

    def _hear(self, message):
        text = f"{message.text} {message.location.get('url', '')}"
        if message.type == "error" and not KNOWN.search(text):
            self.errors.append(text)

    def tab(self, name):
        self.page.get_by_role("tab", name=name, exact=True).click()

    def text(self):
        return self.page.locator("body").inner_text()

    def step(self):
        """The step that the panel shows, or None."""
        found = re.search(r"Step ([\d,]+)(?: of|\.)", self.text())
        return None if found is None else int(found[1].replace(",", ""))

    def widths(self):
        """The panel's table: what the layers have now."""
        rows = self.page.locator("table").first.locator("tbody tr")
        return [int(rows.nth(i).locator("td").nth(2).inner_text()) for i in range(rows.count())]

    def press(self, label):
        self.page.get_by_role("button", name=label, exact=True).click()

    def field(self, label):
        """The input beside a label."""
        row = self.page.locator("div.mantine-Flex-root", has=self.page.get_by_text(label, exact=True)).last
        return row.locator("input:visible").last

    def enter(self, label, value):
        """Fill a number field."""
        box = self.field(label)
        box.fill(str(value))
        box.press("Enter")
        box.blur()

    def choices(self, label):
        """What a drop-down list offers."""
        self.field(label).click()
        names = self.page.get_by_role("option").all_inner_texts()
        self.page.keyboard.press("Escape")
        return set(names)

    def answer(self, label, pattern, seconds=60):
        """Wait for the panel's answer to a button."""
        seen = re.compile(rf"{re.escape(label)}: ({pattern})")
        return wait_for(lambda: seen.search(self.text()), seconds, lambda: f"no {pattern!r} in:\n{self.text()}")[1]

    def picture(self):
        """The rendered scene as PNG bytes, without the panel."""
        return self.page.screenshot(clip={"x": 100, "y": 150, "width": 800, "height": 700})

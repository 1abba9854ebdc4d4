"""The page about a run: whole, self-contained, true to the checkpoint; opened in a browser where there is one."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import run_command as _run
from PIL import Image
from tiny import tiny_config, train
from viewer_page import FLAGS, chromium

from aire_nerfstudio.data.smaller_views import shrink_picture
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.report.charts import _smoothed, _smoothed_at_each_size, contributions, curves, sizes, spectrum
from aire_nerfstudio.report.facts import read_run
from aire_nerfstudio.report.page import write_report
from aire_nerfstudio.report.portrait import Portrait
from aire_nerfstudio.report.template import duration
from aire_nerfstudio.sessions import SessionLog, read_sessions


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A quiet run on a picture of odd size, with the report that it ends with."""
    root = tmp_path_factory.mktemp("report")
    y, x = np.mgrid[0:31, 0:43] / 43
    values = np.stack([x, y, 0.5 + 0.4 * np.sin(9 * x * y)], -1)
    Image.fromarray((255 * values).astype(np.uint8)).save(root / "photo.png")
    done = _run(
        "ns-train", "aire-image-siren", "--data", "photo.png", "--max-num-iterations", "120", "--timestamp", "run",
        "--vis", "tensorboard", "--quiet", "True", "--pipeline.model.widths", "24", "20",
        "--pipeline.datamanager.train-num-rays-per-batch", "500", "--optimizers.fields.optimizer.lr", "3e-3", cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return root / "outputs" / "photo" / "aire-image-siren" / "run", done


def test_a_quiet_run_prints_nothing_of_its_own(run):
    _, done = run
    for words in ("Config File", "densify", "Step (%", "Saving", "widths"):
        assert words not in done.stdout + done.stderr, words


def test_the_page_says_what_the_checkpoint_says(run):
    folder, _ = run
    text = (folder / "report.html").read_text("utf8")
    state = torch.load(next((folder / "nerfstudio_models").iterdir()), weights_only=True)["pipeline"]
    extra = state["_model._extra_state"]
    assert f"{extra['parameters']:,}" in text
    for event in extra["history"]:
        assert f"<td>{event['step']}</td><td>{event['event']}</td>" in text
    assert "ns-train aire-image-siren --data photo.png" in text
    assert text.count("<svg ") == 4
    assert text.count("data:image/jpeg;base64,") == 6
    assert len(text) < 5e6
    session = read_sessions(folder)[0]
    assert (session["from_step"], session["to_step"]) == (0, 120)
    assert session["seconds"] > 0


def test_the_page_asks_the_network_for_nothing(run):
    text = (run[0] / "report.html").read_text("utf8")
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium")
def test_every_figure_is_drawn_in_a_browser(run, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=FLAGS)
        page, asked, said = browser.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto((run[0] / "report.html").as_uri())
        sizes_seen = page.evaluate(
            "[...document.querySelectorAll('img')].map(i => [i.naturalWidth, i.clientWidth]).concat("
            "[...document.querySelectorAll('svg')].map(s => [s.getBBox().width, s.clientWidth]))"
        )
        assert len(sizes_seen) == 10
        assert all(min(pair) > 20 for pair in sizes_seen)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert said == []


def test_two_runs_lie_side_by_side(run, tmp_path):
    folder, _ = run
    done = _run("aire-report", folder, folder, "--output-path", tmp_path / "both.html", cwd=folder.parents[3])
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "both.html").read_text("utf8")
    assert text.count("<h1>") == 2
    assert text.count("<svg ") == 6  # two together, two of each
    assert "wrote" in done.stdout


def test_without_pictures_nothing_of_the_run_is_executed(run, tmp_path):
    """A stranger's config.yml may hold code; the checkpoint is read as plain data."""
    folder = tmp_path / "name" / "method" / "run"
    (folder / "nerfstudio_models").mkdir(parents=True)
    for file in (run[0] / "nerfstudio_models").iterdir():
        (folder / "nerfstudio_models" / file.name).write_bytes(file.read_bytes())
    (folder / "config.yml").write_text("!!python/object/apply:os.mkdir ['hacked']\n<script>alert(1)</script>\n")
    done = _run("aire-report", folder, "--no-pictures", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""
    assert not (tmp_path / "hacked").exists()
    text = (folder / "report.html").read_text("utf8")
    assert "<script" not in text
    assert "Not known: the folder has no run.json" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "holds no nerfstudio_models/step-*.ckpt"),
        (["a", "b", "c"], "one run or two; 3 folders"),
        (["nowhere", "--views", "0"], "--views 0 must be"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, arguments, words):
    done = _run("aire-report", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["truncated", "other", "eval", "session"])
def test_damaged_runs_are_named(run, tmp_path, what):
    folder = tmp_path / "run"
    (folder / "nerfstudio_models").mkdir(parents=True)
    source = next((run[0] / "nerfstudio_models").iterdir())
    target = folder / "nerfstudio_models" / source.name
    target.write_bytes(source.read_bytes()[:2000] if what == "truncated" else source.read_bytes())
    if what == "other":
        torch.save({"step": 3, "pipeline": {}}, target)
    if what == "eval":
        (folder / "eval.json").write_text('{"results": [1]}')
    if what == "session":
        (folder / "run.json").write_text("[{]")
    with pytest.raises(InputError, match=r"ckpt is truncated|ckpt is no whole|eval\.json cannot|run\.json cannot"):
        read_run(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("from_step", "0"), ("to_step", -3), ("to_step", True), ("seconds", math.nan), ("seconds", [1.0])),
        *(("packages", "torch"), ("command", None), ("threads", 1.5), ("torch", ["2"])),
    ],
)
def test_a_strangers_sessions_are_not_trusted(tmp_path, name, value):
    SessionLog(tmp_path, "cpu", 7).write(10)
    assert len(read_sessions(tmp_path)) == 1
    (entry,) = json.loads((tmp_path / "run.json").read_text("utf8"))
    entry[name] = value
    (tmp_path / "run.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match=rf"run\.json cannot be read \({name} of a session is .*\); remove it"):
        SessionLog(tmp_path, "cpu", 7)
    del entry[name]
    (tmp_path / "run.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match=f"{name} of a session is 'None'"):
        read_sessions(tmp_path)


def test_sessions_that_would_take_all_memory_or_stack_are_refused(tmp_path):
    for text in ("[" * 100_000, "[" + " " * (1 << 22) + "]"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(InputError, match=r"run\.json cannot be read"):
            read_sessions(tmp_path)


def test_a_run_whose_sessions_are_damaged_is_not_resumed(tmp_path):
    config = tiny_config("image", tmp_path / "first")
    train(config)
    (config.get_base_dir() / "run.json").write_text('[{"command": 1}]')
    again = tiny_config("image", tmp_path / "again", max_num_iterations=60)
    again.load_dir = config.get_checkpoint_dir()
    with pytest.raises(SystemExit, match=r"run\.json cannot be read \(command of a session is '1', not str\)"):
        train(again)
    assert not (tmp_path / "again").exists()


def test_large_pictures_are_made_smaller_until_the_page_fits(run, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    facts = read_run(run[0])
    pictures = {f"{index}": noise for index in range(40)}
    write_report(tmp_path / "a.html", [facts], [[Portrait("noise", pictures)]])
    assert (tmp_path / "a.html").stat().st_size < 5e6


def test_runs_of_different_tasks_are_not_compared(run, tmp_path):
    facts = read_run(run[0])
    assert facts.task == "image"
    other = replace(facts, task="surface")
    for runs, is_said in (([facts, facts], False), ([facts, other], True)):
        write_report(tmp_path / "a.html", runs, [[], []])
        page = (tmp_path / "a.html").read_text("utf8")
        assert ("learn different things (image and surface)" in page) is is_said


def test_a_run_of_an_earlier_release_is_shown_without_curves(run, tmp_path):
    facts = read_run(run[0])
    old = type(facts)(**{**facts.__dict__, "record": None, "now": None, "sessions": []})
    assert curves([old]) is None
    assert sizes([old]) is None
    write_report(tmp_path / "a.html", [old], [[]])
    assert "earlier release" in (tmp_path / "a.html").read_text("utf8")
    write_report(tmp_path / "b.html", [facts, old], [[], []])


def test_charts_take_any_depth_and_dimension(run):
    shots = read_run(run[0]).record.snapshots
    assert contributions(shots[:1]).startswith("<svg ")
    assert contributions(shots) == contributions(shots)
    deeper = [type(s)(s.step, s.event, s.layers, torch.cat([s.frequencies, s.frequencies], 1)) for s in shots]
    assert "contribution" in spectrum(deeper[:2])


def test_sessions_add_up(tmp_path):
    def session(folder, step, resumed=None):
        log = SessionLog(folder, "cpu", 7, resumed)
        log.begin(step)
        return log

    session(tmp_path, 0).write(10)
    second = session(tmp_path, 10)
    second.write(25)
    second.write(30)
    entries = read_sessions(tmp_path)
    assert [(e["from_step"], e["to_step"]) for e in entries] == [(0, 10), (10, 30)]
    again = session(tmp_path, 0)  # from the start: what was trained before is not of this run
    session(tmp_path / "other", 30, resumed=tmp_path).write(40)
    assert [e["from_step"] for e in read_sessions(tmp_path / "other")] == [0, 10, 30]
    again.write(5)
    assert [(e["from_step"], e["to_step"]) for e in read_sessions(tmp_path)] == [(0, 5)]
    assert json.loads((tmp_path / "other" / "run.json").read_text())[0]["seed"] == 7
    # Of a session that went further, what is trained anew is taken out, with its share of the time.
    entries = read_sessions(tmp_path / "other")
    entries[1]["seconds"] = 8.0
    (tmp_path / "other" / "run.json").write_text(json.dumps(entries))
    session(tmp_path / "third", 25, resumed=tmp_path / "other").write(26)
    kept = [(e["from_step"], e["to_step"]) for e in read_sessions(tmp_path / "third")]
    assert kept == [(0, 10), (10, 25), (25, 26)]
    assert read_sessions(tmp_path / "third")[1]["seconds"] == 6.0


def test_a_running_mean_bears_what_is_not_finite():
    assert _smoothed([1.0, 3.0], 0.5) == [1.0, 2.0]
    assert _smoothed_at_each_size([1.0, 1.0, 300.0, 300.0], [9, 9, 4, 4]) == [1.0, 1.0, 300.0, 300.0]
    assert _smoothed([math.nan, 1.0, math.inf, 3.0], 0.5)[1:] == [1.0, 1.0, 2.0]
    assert all(map(math.isnan, _smoothed([math.nan, math.nan])))


@pytest.mark.parametrize(("seconds", "words"), [(7.34, "7.3 s"), (252, "4 min 12 s"), (7500, "2 h 05 min")])
def test_durations_read_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_views_shrink_as_what_is_seen_does():
    """Colours count by their alpha: over any background, the mean of the picture is the picture of the mean."""
    image = torch.rand(6, 8, 4)
    small = shrink_picture(image, (3, 4))
    for background in (0.0, 1.0):
        seen = image[..., :3] * image[..., 3:] + background * (1 - image[..., 3:])
        expected = seen.view(3, 2, 4, 2, 3).mean((1, 3))
        assert torch.allclose(small[..., :3] * small[..., 3:] + background * (1 - small[..., 3:]), expected, atol=1e-5)
    assert torch.allclose(
        shrink_picture(image[..., :3], (3, 4)), image[..., :3].reshape(3, 2, 4, 2, 3).mean((1, 3)), atol=1e-6
    )

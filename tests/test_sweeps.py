"""Parts of a sweep: together everything, nothing twice, none waiting for another; and the scripts that start them."""

import os
import subprocess
from pathlib import Path

import pytest
from commands import environment, run_command
from hypothesis import given
from hypothesis import strategies as st

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.reproduce.experiment import Choice
from aire_nerfstudio.reproduce.experiments import EXPERIMENTS, kind_of, make_experiment
from aire_nerfstudio.reproduce.parts import parse_part, part_of

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@given(name=st.sampled_from(sorted(EXPERIMENTS)), count=st.integers(1, 12), seeds=st.integers(1, 3))
def test_parts_are_a_partition_that_no_fit_crosses(name, count, seeds):
    files = ("a.png", "b.png") if kind_of(name) == "images" else ("a.ply", "b.ply")
    fits = make_experiment(name, Choice("paper", files, tuple(range(seeds)), ())).fits()
    parts = [part_of(fits, number, count) for number in range(1, count + 1)]
    together = [fit for part in parts for fit in part]
    assert len(together) == len(set(together)) == len(set(fits))
    assert set(together) == set(fits)
    for part in parts:
        others = set(together) - set(part)
        assert not any(need in others for fit in part for need in fit.needs())
    # No part costs more than the fair share and the dearest group together.
    costs = [sum(fit.cost() for fit in part) for part in parts]
    roots: dict = {}
    for fit in set(fits):
        root = fit
        while root.needs():
            root = root.needs()[0]
        roots[root] = roots.get(root, 0) + fit.cost()
    assert max(costs) <= sum(costs) / count + max(roots.values()) + 1e-9 * sum(costs)


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1 / 2"])
def test_bad_parts_are_refused(text):
    with pytest.raises(InputError, match="must be NUMBER/COUNT"):
        parse_part(text)


def test_parts_on_one_machine_then_the_report(tmp_path):
    """As ``scripts/sweep.sh`` starts them; a part that was done is not done again."""
    command = ["aire-reproduce", "images-table1", "--budget", "smoke", "--jobs", "1", "--quiet"]
    alone = run_command(*command, "--part", "1/2", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    fits = tmp_path / "reproduce" / "fits"
    first = {path.name: path.stat().st_mtime_ns for path in fits.glob("*.json")}
    assert first
    assert not (tmp_path / "reproduce" / "smoke").exists()
    done = subprocess.run(
        ["bash", SCRIPTS / "sweep.sh", "2", *command], cwd=tmp_path, env=environment(), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole = {path.name: path.stat().st_mtime_ns for path in fits.glob("*.json")}
    assert first.items() < whole.items()
    report = run_command(*command, cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert {path.name: path.stat().st_mtime_ns for path in fits.glob("*.json")} == whole
    assert list((tmp_path / "reproduce" / "smoke").glob("*.md"))


def test_a_slurm_task_takes_its_part(tmp_path):
    shown = {**os.environ, "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    script = str(SCRIPTS / "sweep.sbatch")
    done = subprocess.run(["bash", script, "echo", "run"], env=shown, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["run", "--part", "3/8"]
    again = subprocess.run(
        ["bash", script, "echo", "run"], env={**shown, "SLURM_ARRAY_TASK_COUNT": "1", "PARTS": "8"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert again.stdout.split() == ["run", "--part", "3/8"]
    for command, environment_ in ((["bash", script], shown), (["bash", script, "echo"], os.environ)):
        bare = {k: v for k, v in environment_.items() if environment_ is shown or not k.startswith("SLURM")}
        failed = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
        assert failed.returncode != 0
        assert failed.stderr.count("\n") == 1


def test_more_parts_than_gpus_are_refused(tmp_path):
    """Otherwise the last would train on a processor, or where another does."""
    done = subprocess.run(
        ["bash", SCRIPTS / "sweep.sh", "3", "touch"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**environment(), "CUDA_VISIBLE_DEVICES": "0,1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: COUNT is 3 and there are 2 GPUs to use, one a part; give at most 2\n"
    assert list(tmp_path.iterdir()) == []

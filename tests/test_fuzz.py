"""A few of the fuzzers' inputs, the same each time; ``scripts/fuzz.py`` goes on for as long as it is given."""

import pytest
import torch
from commands import fork
from fuzzing import TARGETS, run_one

EACH = {"picture": 150, "shape": 60, "transforms": 200, "checkpoint": 60, "configuration": 60, "schedule": 300}


def _run(name, folder, out):
    torch.set_num_threads(1)
    counts = {"accepted": 0, "refused": 0}
    for seed in range(EACH[name]):
        out.write_text(f"seed {seed}")  # what a reader in C++ may end without a word
        try:
            counts[run_one(name, seed, folder)] += 1
        except BaseException as error:
            out.write_text(f"{name} seed {seed}: {type(error).__name__}: {error}")
            raise
    out.write_text(str(counts))


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_is_accepted_or_refused_in_one_line(name, tmp_path):
    assert set(EACH) == set(TARGETS)
    out = tmp_path / "out"
    process = fork(_run, name, tmp_path, out)
    process.join(250)
    process.kill()
    assert process.exitcode == 0, out.read_text()
    assert eval(out.read_text())["refused"] > EACH[name] / 20

"""A short soak: each task killed at moments drawn at random; ``scripts/soak.py`` is the long one."""

import pytest
from soak import killed, whole
from tiny import TASKS


@pytest.mark.parametrize("task", TASKS)
def test_killed_and_resumed_is_uninterrupted(task, demo, tmp_path):
    outcome = killed(task, tmp_path, 3, seed=7, expected=whole(task, tmp_path))
    assert outcome.faults == []
    assert len(outcome.kills) >= 2
    assert len(outcome.resumed_from) == len(outcome.kills)

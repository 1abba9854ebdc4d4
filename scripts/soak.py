"""Kill trainings of all tasks at random moments, resume them, and compare the ends to the bit: ``scripts/soak.py 100``.

Prints a line a run and a summary; exit status 1 if anything was lost or differs. Two runs at a time, about three
seconds a kill on two cores.
"""

import argparse
import collections
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from soak import killed, whole
from tiny import TASKS


def main():
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=100, help="kills in all (default: 100)")
    parser.add_argument("--each", type=int, default=5, help="kills a run (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default: 0)")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--json", type=Path, help="write the outcomes here as well")
    given = parser.parse_args()
    if min(given.kills, given.each, given.workers) < 1:
        parser.error("kills, --each and --workers must be at least 1")
    began, done, faults, resumed, moments = time.monotonic(), 0, 0, 0, collections.Counter()
    outcomes = []
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(given.workers) as pool:
        os.environ.setdefault("AIRE_CACHE", f"{place}/cache")
        expected = {task: whole(task, Path(place) / task) for task in TASKS}

        def run(number):
            task = list(TASKS)[number % len(TASKS)]
            return task, number, killed(task, Path(place) / task, given.each, given.seed + number, expected[task])

        for task, number, outcome in pool.map(run, range(-(-given.kills // given.each))):
            done, faults = done + len(outcome.kills), faults + len(outcome.faults)
            resumed += len(outcome.resumed_from)
            moments.update(moment for moment, _ in outcome.kills)
            outcomes.append({"task": task, "seed": given.seed + number, **vars(outcome)})
            passed = time.monotonic() - began
            left = passed / max(1, done) * max(0, given.kills - done)
            print(
                f"{done:4} kills | {task:5} seed {given.seed + number}: {outcome.kills}, resumed from "
                f"{outcome.resumed_from} | {'equal' if not outcome.faults else outcome.faults} | {left:.0f} s left",
                flush=True,
            )
    if given.json is not None:
        given.json.write_text(json.dumps(outcomes, indent=1) + "\n")
    print(
        f"{done} kills ({dict(moments)}), {resumed} processes took up what was left, {faults} faults, "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())

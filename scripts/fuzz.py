"""Feed spoiled pictures, shapes, scenes, checkpoints, configurations and schedules to their readers.

``python scripts/fuzz.py --minutes 5``; prints for each target how many inputs were tried, accepted and refused in one
line, and each crash with the seed that repeats it (``--only shape --seed 17 --count 1``). Exit status 1 after a crash.
"""

import argparse
import collections
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

BATCH = 50


def _batch(name, seeds, folder, answers):
    """Run seeds in a process of its own, which a reader in C++ may end."""
    from fuzzing import run_one

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    for seed in seeds:
        answers.put((seed, "began"))
        try:
            answers.put((seed, run_one(name, seed, folder)))
        except BaseException:
            answers.put((seed, traceback.format_exc()))


def main():
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="time in all (default: 5)")
    parser.add_argument("--only", help="one target")
    parser.add_argument("--seed", type=int, default=1_000, help="first seed (default: 1000)")
    parser.add_argument("--count", type=int, help="inputs of each target instead of a time")
    given = parser.parse_args()

    from fuzzing import TARGETS

    if given.only is not None and given.only not in TARGETS:
        parser.error(f"--only {given.only} is none of {', '.join(TARGETS)}")
    names = [given.only] if given.only else list(TARGETS)
    forks = multiprocessing.get_context("fork")
    counts, crashes = {name: collections.Counter() for name in names}, []
    began, seeds = time.monotonic(), dict.fromkeys(names, given.seed)
    with tempfile.TemporaryDirectory() as place:
        while True:
            for name in names:
                size = BATCH if given.count is None else min(BATCH, given.seed + given.count - seeds[name])
                folder = Path(place) / name
                folder.mkdir(exist_ok=True)
                answers = forks.Queue()
                process = forks.Process(
                    target=_batch, args=(name, range(seeds[name], seeds[name] + size), folder, answers)
                )
                process.start()
                last, done = None, 0
                while done < size and (process.is_alive() or not answers.empty()):
                    try:
                        last, what = answers.get(timeout=1)
                    except Exception:
                        continue
                    if what == "began":
                        continue
                    done += 1
                    if what in ("accepted", "refused"):
                        counts[name][what] += 1
                    else:
                        counts[name]["crashed"] += 1
                        crashes.append((name, last, what))
                        print(f"{name} seed {last}:\n{what}", flush=True)
                process.join(5)
                process.kill()
                if process.exitcode and done < size:
                    counts[name]["crashed"] += 1
                    crashes.append((name, last, f"the process ended with {process.exitcode}"))
                    print(f"{name} seed {last}: the process ended with {process.exitcode}", flush=True)
                    seeds[name] = last + 1
                else:
                    seeds[name] += size
            passed = time.monotonic() - began
            total = sum(sum(c.values()) for c in counts.values())
            left = max(0.0, 60 * given.minutes - passed)
            print(f"{total:,} inputs, {len(crashes)} crashes, {left:.0f} s left", flush=True)
            if given.count is not None and all(seeds[name] >= given.seed + given.count for name in names):
                break
            if given.count is None and left == 0:
                break
    for name, found in counts.items():
        columns = ", ".join(f"{found[what]:,} {what}" for what in ("accepted", "refused", "crashed"))
        print(f"{name:14} {sum(found.values()):7,} tried: {columns}")
    return 1 if crashes else 0


if __name__ == "__main__":
    raise SystemExit(main())

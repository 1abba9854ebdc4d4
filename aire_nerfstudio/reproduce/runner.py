"""Running fits that are not there yet, several at a time, with a bar that tells when they will be done."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aire_nerfstudio.data.picture import read_picture
from aire_nerfstudio.errors import InputError
from aire_nerfstudio.ops.host_memory import keep_freed_memory
from aire_nerfstudio.reproduce.image_fit import ImageFit, fit_image, load_picture
from aire_nerfstudio.reproduce.record import Recorder
from aire_nerfstudio.reproduce.store import Store

_messages: Any = None


def run_fits(
    fits: Sequence[ImageFit], images: Path, store: Store, device: str, jobs: int, console: Console,
    is_recorded: bool = False, is_timed: bool = False,
) -> None:  # fmt: skip
    """Run what the store does not hold yet.

    A finished fit is kept at once, so an interrupted call loses only those under way.

    Args:
        fits: all that are wanted.
        images: folder of the pictures.
        store: where finished fits go.
        device: ``cpu``, ``cuda``...
        jobs: fits at a time, each in a process of its own; on a GPU they share it.
        console: for the bar.
        is_recorded: keep the arrays for figures, too.
        is_timed: run one at a time, and again those that were not.

    Raises:
        InputError: a picture is missing or bad (found before any fit begins), or a fit failed (the others are
            finished first).
    """
    jobs = 1 if is_timed else jobs
    for name in sorted({fit.image for fit in fits}):
        read_picture(images / name)
    missing = [fit for fit in fits if not store.is_finished(fit, is_recorded, is_timed)]
    console.print(f"{len(fits)} fits, {len(fits) - len(missing)} of them finished before, {jobs} at a time on {device}")
    if not missing:
        return
    # The longest first: none is left to run alone at the end.
    missing.sort(key=_cost, reverse=True)
    context = multiprocessing.get_context("spawn")
    messages = context.Manager().Queue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    columns = (
        TextColumn("[green]fitting"), BarColumn(), MofNCompleteColumn(), TextColumn("fits |"), TimeElapsedColumn(),
        TextColumn("| left"), TimeRemainingColumn(elapsed_when_finished=False),
    )  # fmt: skip
    failures: list[str] = []
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(jobs, context, _start_worker, (messages, threads)) as pool,
        contextlib.ExitStack() as cleanup,
    ):
        # Work is counted in fits, each fit by its share of the whole cost, so that the time left is not misled.
        scale = len(missing) / sum(_cost(fit) for fit in missing)
        bar = progress.add_task("fits", total=len(missing))
        shares = {fit.key(): 0.0 for fit in missing}
        weights = {fit.key(): _cost(fit) * scale for fit in missing}
        work = {pool.submit(_run_one, fit, images, store, device, jobs, is_recorded): fit for fit in missing}
        pending = set(work)
        # Without this an interrupt would wait for every fit of the queue.
        cleanup.callback(_stop, pool)
        while pending:
            try:
                key, share = messages.get(timeout=0.5)
                shares[key] = max(shares[key], share)
            except queue.Empty:
                pass
            for future in [f for f in pending if f.done()]:
                pending.remove(future)
                fit = work[future]
                shares[fit.key()] = 1.0
                error = future.exception()
                if error is not None:
                    failures.append(f"{fit.image} {fit.variant} {fit.activation} seed {fit.seed}: {error}")
            progress.update(bar, completed=sum(weights[key] * share for key, share in shares.items()))
        cleanup.pop_all()
    if failures:
        raise InputError(f"{len(failures)} of {len(missing)} fits failed; the first: {failures[0]}")


def _cost(fit: ImageFit) -> float:
    """Proportional to a fit's time: epochs, pixels and weights."""
    sizes = (2, *fit.widths, 3)
    weights = sum(a * b for a, b in itertools.pairwise(sizes))
    return fit.epochs * (fit.side or fit.crop or 512) ** 2 * weights


def _stop(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _start_worker(messages: Any, threads: int) -> None:
    global _messages
    _messages = messages
    torch.set_num_threads(threads)


def _run_one(fit: ImageFit, images: Path, store: Store, device: str, jobs: int, is_recorded: bool) -> None:
    if device == "cpu":
        keep_freed_memory()
    picture = load_picture(fit, images)
    recorder = Recorder(picture, device) if is_recorded else None
    key = fit.key()
    done = fit_image(fit, picture, device, lambda step, total: _messages.put((key, step / total)), recorder)
    if recorder is not None:
        recorder.save(store.record_path(fit))
    store.save(fit, done.figures, jobs)

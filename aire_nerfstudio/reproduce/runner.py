"""Running fits that are not there yet, several at a time, with a bar that tells when they will be done."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from aire_nerfstudio.errors import InputError
from aire_nerfstudio.ops.backend import LIBRARIES, is_off
from aire_nerfstudio.processes import end_with_parent
from aire_nerfstudio.reproduce.fit import Fit
from aire_nerfstudio.reproduce.store import Store

_messages: Any = None


def run_fits(
    fits: Sequence[Fit], sources: Path, store: Store, device: str, jobs: int, console: Console,
    is_recorded: bool = False, is_timed: bool = False,
) -> None:  # fmt: skip
    """Run what the store does not hold yet.

    A finished fit is kept at once, so an interrupted call loses only those under way.

    Args:
        fits: all that are wanted; what they need is run before them.
        sources: folder of the pictures or shapes.
        store: where finished fits go.
        device: ``cpu``, ``cuda``...
        jobs: fits at a time, each in a process of its own; on a GPU they share it.
        console: for the bar.
        is_recorded: keep the arrays for figures, too.
        is_timed: run one at a time, and again those that were not.

    Raises:
        InputError: a file is missing or bad (found before any fit begins), or a fit failed (the others are
            finished first).
    """
    jobs = 1 if is_timed else jobs
    needed = {need for fit in fits for need in _all_needs(fit)}
    wanted = [*fits, *(need for need in needed if need not in fits)]
    for fit in {fit.source: fit for fit in wanted}.values():
        fit.check(sources)
    missing = [fit for fit in wanted if not store.is_finished(fit, is_recorded or fit in needed, is_timed)]
    if missing and device == "cpu" and not is_off():
        # Compiled before the first clock starts.
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(store.precision)
        for library in LIBRARIES:
            library.load()
        torch.set_float32_matmul_precision(before)
    console.print(
        f"{len(wanted)} fits, {len(wanted) - len(missing)} of them finished before, {jobs} at a time on {device}"
    )
    old = sum(store.is_of_other_code(fit) for fit in wanted if fit not in missing)
    if old:
        console.print(
            f"warning: {old} of the finished fits were run by another state of this package's code; they are used as "
            f"they are. Take another --out to run them anew (their files lie in {store.folder}).",
            style="yellow", markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if not missing:
        return
    # The longest first: none is left to run alone at the end.
    missing.sort(key=lambda fit: fit.cost(), reverse=True)
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
        ProcessPoolExecutor(jobs, context, _start_worker, (messages, threads, store.precision)) as pool,
        contextlib.ExitStack() as cleanup,
    ):
        # Work is counted in fits, each fit by its share of the whole cost, so that the time left is not misled.
        scale = len(missing) / sum(fit.cost() for fit in missing)
        bar = progress.add_task("fits", total=len(missing))
        shares = {fit.key(): 0.0 for fit in missing}
        weights = {fit.key(): fit.cost() * scale for fit in missing}
        work: dict[Future[None], Fit] = {}
        waiting = list(missing)
        # Without this an interrupt would wait for every fit of the queue.
        cleanup.callback(_stop, pool)
        failed: set[Fit] = set()
        while waiting or work:
            for fit in list(waiting):
                open_needs = [need for need in _all_needs(fit) if need in waiting or need in work.values()]
                lost = [need for need in _all_needs(fit) if need in failed]
                if lost:
                    waiting.remove(fit)
                    failed.add(fit)
                    failures.append(f"{fit.label}: not run, since {lost[0].label} failed")
                elif not open_needs:
                    waiting.remove(fit)
                    keep = is_recorded or fit in needed
                    try:
                        work[pool.submit(_run_one, fit, sources, store, device, jobs, keep)] = fit
                    except BrokenProcessPool as broken:  # a worker was killed, for want of memory say
                        failed.add(fit)
                        failures.append(f"{fit.label}: {broken}")
            try:
                key, share = messages.get(timeout=0.5)
                shares[key] = max(shares[key], share)
            except queue.Empty:
                pass
            for future in [f for f in work if f.done()]:
                fit = work.pop(future)
                shares[fit.key()] = 1.0
                error = future.exception()
                if error is not None:
                    failed.add(fit)
                    failures.append(f"{fit.label}: {error}")
            progress.update(bar, completed=sum(weights[key] * share for key, share in shares.items()))
        cleanup.pop_all()
    if failures:
        raise InputError(f"{len(failures)} of {len(missing)} fits failed; the first: {failures[0]}")


def _all_needs(fit: Fit) -> list[Fit]:
    """What must be there before it runs, and before that."""
    return list(dict.fromkeys(each for need in fit.needs() for each in (*_all_needs(need), need)))


def _stop(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _start_worker(messages: Any, threads: int, precision: str) -> None:
    global _messages
    _messages = messages
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's, which ends its workers
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)


def _run_one(fit: Fit, sources: Path, store: Store, device: str, jobs: int, is_recorded: bool) -> None:
    key = fit.key()
    figures = fit.run(sources, device, store, lambda step, total: _messages.put((key, step / total)), is_recorded)
    store.save(fit, figures, jobs)

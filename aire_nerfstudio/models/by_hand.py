"""What a person asks of a running training, answered between two steps."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nerfstudio.utils.rich_utils import CONSOLE

from aire_nerfstudio.adaptation.control import Refused, Request
from aire_nerfstudio.errors import InputError, first_line
from aire_nerfstudio.models.adaptation_run import AdaptationRun
from aire_nerfstudio.models.rng import rng_state, set_rng_state
from aire_nerfstudio.models.task import AdaptiveTask
from aire_nerfstudio.viewer.watched import Done

Action = Callable[[], str]


class RequestQueue:
    """Takes requests from any thread; the one that trains answers them."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Action, Done]] = queue.SimpleQueue()

    def __getstate__(self) -> dict[str, Any]:
        """A copy is asked for nothing yet."""
        return {name: value for name, value in self.__dict__.items() if name != "_waiting"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._waiting = queue.SimpleQueue()

    def ask(self, action: Action, done: Done = lambda answer: None) -> None:
        """Have something done after the present step, in the thread and under the lock that train.

        Args:
            action: what to do; its answer says what was done. It raises :class:`InputError` to refuse.
            done: gets the answer, or ``refused:`` and the reason.
        """
        self._waiting.put((action, done))

    @property
    def is_waiting(self) -> bool:
        """Whether something is asked for."""
        return not self._waiting.empty()

    def answer(self, step: int) -> None:
        """Do all that was asked for, before the optimizer step ``step``."""
        while not self._waiting.empty():
            action, done = self._waiting.get()
            before = rng_state()
            try:
                answer = action()
            except InputError as error:
                set_rng_state(before)  # what was refused leaves no trace
                answer = f"refused: {error}"
                CONSOLE.log(f"step {step:,}: {answer}")
            self._tell(done, answer)

    def refuse(self, reason: str) -> None:
        """Answer all that still waits."""
        while not self._waiting.empty():
            self._tell(self._waiting.get()[1], f"refused: {reason}")

    @staticmethod
    def _tell(done: Done, answer: str) -> None:
        try:
            done(answer)
        except Exception as error:  # a browser that has just gone does not end a training
            CONSOLE.log(f"the answer {answer!r} reached nobody ({first_line(error)})")


class ByHand(RequestQueue):
    """What may be asked of an adaptation.

    Args:
        task: what trains.
        run: its adaptation.
    """

    def __init__(self, task: AdaptiveTask, run: AdaptationRun) -> None:
        super().__init__()
        self._task, self._run = task, run

    def ask_for(self, request: Request, done: Done = lambda answer: None) -> None:
        """Have the architecture changed; see :meth:`ask`."""
        self.ask(lambda: self._run.change(request), done)

    def ask_to_freeze(self, is_frozen: bool, done: Done = lambda answer: None) -> None:
        """Stop the schedule's clock, or let it go on; what is asked for by hand is done anyway. See :meth:`ask`."""
        self.ask(lambda: self._run.freeze(is_frozen), done)

    def ask_to_export(self, folder: Path, done: Done = lambda answer: None) -> None:
        """Have what the network stands for written into a folder; see :meth:`ask`."""

        def write() -> str:
            self._task.eval()
            try:
                return f"wrote {self._task.export(folder / f'step-{self._run.step + 1:09d}')}"
            except (OSError, RuntimeError) as error:
                raise Refused(f"nothing was written ({first_line(error)})") from error
            finally:
                self._task.train()

        self.ask(write, done)

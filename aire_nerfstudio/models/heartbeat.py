"""Machines that train together tell each other that they are alive: one that loses its power breaks no connection."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from torch.distributed import Store

# Seconds between two signs of life, and without one until a machine counts as lost. TCP's repeats bridge outages of up
# to half of that.
INTERVAL, SILENCE = 2.0, 60.0
GONE = b"gone"


class Heartbeat:
    """Counts up in a store that all machines reach, and watches the others' counts.

    Args:
        meet: gives a store for this object alone, which may take until the first machine begins. It lives there, as
            long as that one's launcher.
        machine: this machine's number.
        machines: how many there are.
        silence: seconds without a sign of life after which a machine is lost.
        interval: seconds between two of them.
    """

    def __init__(
        self,
        meet: Callable[[], Store],
        machine: int,
        machines: int,
        silence: float = SILENCE,
        interval: float = INTERVAL,
    ) -> None:
        self._meet, self._machine = meet, machine
        self._store: Store | None = None
        self._others = [number for number in range(machines) if number != machine]
        self._silence, self._interval = silence, interval
        # When the count of a machine that was heard of, and is not gone, last changed.
        self._heard: dict[int, float] = {}
        self._known: set[int] = set()
        self._answered = self._asked = time.monotonic()
        self._over = threading.Event()
        # A call to a store that is cut off may never return; nothing waits for this thread.
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def lost(self) -> int | None:
        """Number of a machine that gave no sign of life for too long; None: all do, or are done. To be asked often."""
        now = time.monotonic()
        if now - self._asked > 3 * self._interval:
            # It was this machine that stood still, and the others' counts have not been read since.
            self._answered = now
            self._heard.update({number: now for number in list(self._heard)})
        self._asked = now
        if now - self._answered > self._silence and 0 in self._heard:
            return 0
        return next((number for number, at in list(self._heard.items()) if now - at > self._silence), None)

    def missing(self) -> list[int]:
        """Machines that were never heard of."""
        return [number for number in self._others if number not in self._known]

    def finish(self) -> None:
        """This machine has ended, well or not, and the others need not hear of it again."""
        self._over.set()
        self._thread.join(2 * self._interval)
        if self._machine == 0 and self._others:
            # The store goes with this process; the others get the time to read that it does.
            until = time.monotonic() + 2 * self._interval
            while time.monotonic() < until and not all(self._is_gone(number) for number in self._others):
                time.sleep(self._interval / 10)

    def _is_gone(self, number: int) -> bool:
        store = self._store
        return store is not None and store.check([_key(number)]) and store.get(_key(number)) == GONE

    def _beat(self) -> None:
        counts: dict[int, bytes] = {}
        count = 0
        try:
            self._store = self._meet()
            self._answered = time.monotonic()
            while not self._over.is_set():
                count += 1
                self._store.set(_key(self._machine), str(count))
                for number in self._others:
                    if not self._store.check([_key(number)]):
                        continue
                    said = self._store.get(_key(number))
                    self._known.add(number)
                    if said == GONE:
                        self._heard.pop(number, None)
                    elif said != counts.get(number):
                        self._heard[number] = time.monotonic()
                    counts[number] = said
                self._answered = time.monotonic()
                self._over.wait(self._interval)
            self._store.set(_key(self._machine), GONE.decode())
        except RuntimeError:
            # The first machine's launcher has ended without a word, or never began. No answer comes, as lost() tells.
            return


def _key(number: int) -> str:
    return f"aire/machine/{number}"

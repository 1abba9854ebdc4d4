"""Machines that train together tell each other that they are alive: one that loses its power breaks no connection."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from urllib.parse import urlparse

from torch.distributed import TCPStore

# Seconds between two signs of life, and without one until a machine counts as lost.
INTERVAL, SILENCE = 2.0, 30.0
# Seconds in which the first machine's store must answer at the start.
START = 24 * 3600.0


class Heartbeat:
    """Counts up in the store through which the processes found each other, and watches the others' counts.

    Args:
        url: ``tcp://HOST:PORT``, where the first process keeps the store.
        machine: this machine's number.
        machines: how many there are.
        interval: seconds between two signs of life.
        silence: seconds without one after which a machine is lost.
    """

    def __init__(
        self, url: str, machine: int, machines: int, interval: float = INTERVAL, silence: float = SILENCE
    ) -> None:
        self._place = urlparse(url)
        self._machine, self._others = machine, [number for number in range(machines) if number != machine]
        self._interval, self._silence = interval, silence
        self._heard: dict[int, float] = {}
        self._answered: float | None = None
        self._over = threading.Event()
        # A call to a store that is cut off may never return; nothing waits for this thread.
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def lost(self) -> int | None:
        """Number of a machine that gave no sign of life for too long; None: all do, or have finished."""
        now = time.monotonic()
        if self._answered is not None and not self._over.is_set() and now - self._answered > self._silence:
            return 0
        return next((number for number, at in self._heard.items() if now - at > self._silence), None)

    def finish(self) -> None:
        """This machine has done its part; the others need not hear of it again."""
        self._over.set()
        self._thread.join(2 * self._interval)

    def _beat(self) -> None:
        counts: dict[int, int] = {}
        try:
            store = TCPStore(
                self._place.hostname or "", self._place.port or 0, is_master=False, timeout=timedelta(seconds=START)
            )
            while True:
                is_last = self._over.is_set()
                store.add(f"aire/{'finished' if is_last else 'alive'}/{self._machine}", 1)
                if is_last:
                    return
                for number in self._others:
                    count = store.add(f"aire/alive/{number}", 0)
                    if store.add(f"aire/finished/{number}", 0):
                        self._heard.pop(number, None)
                    elif count and count != counts.get(number):
                        counts[number], self._heard[number] = count, time.monotonic()
                self._answered = time.monotonic()
                self._over.wait(self._interval)
        except RuntimeError:
            # The first process has ended, and its store with it: the processes here see that by themselves.
            self._heard.clear()
            self._over.set()

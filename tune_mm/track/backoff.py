"""When to try a store again that has failed: after 1, 2, 4 ... 60 s."""

from __future__ import annotations

import time
from collections.abc import Callable

LONGEST = 60.0  # seconds
DOUBLINGS = 6  # after which a pause is the longest


class Backoff:
    """Pauses that grow with every failure in a row. clock: seconds, of any origin."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.failures = 0
        self._next = 0.0

    def failed(self) -> None:
        """One more failure, now."""
        self._next = self._clock() + min(2.0 ** min(self.failures, DOUBLINGS), LONGEST)
        self.failures += 1

    def succeeded(self) -> None:
        """The store works."""
        self.failures = 0

    @property
    def wait(self) -> float:
        """Seconds until the next attempt; 0 when it is due."""
        if self.failures:
            return max(0.0, self._next - self._clock())
        return 0.0

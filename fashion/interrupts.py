"""Turn a signal into one KeyboardInterrupt, raised where it breaks nothing.

What may not be cut short, such as a database's transaction, defers it. A deferral is bounded: a
signal that is repeated, or `GRACE_SECONDS`, ends the process with the signal's exit code.
"""

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE_SECONDS = 10.0
# `mlflow run` answers Ctrl-C by a SIGTERM, a moment after its child has got the terminal's SIGINT:
# that is no repetition.
REPEATED_AFTER_SECONDS = 1.0
RETRY_SECONDS = 0.01


class Interruption:
    """What has been received while a command runs, and whether it can be raised now.

    Attributes:
        received: the number of the first signal, None before there is one.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._pending = False
        self._retrying = False
        self._deferrals = 0
        self._deferred_at = 0.0
        self._ended = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: raise KeyboardInterrupt now, or see to it that it is raised later."""
        retry, self._retrying = self._retrying, False
        if self.received is None:
            self.received, self._pending = signal.Signals(number), True
            self._received_at = self._deferred_at = time.monotonic()
            _thread.start_new_thread(self._watch, ())
        elif not retry and time.monotonic() - self._received_at > REPEATED_AFTER_SECONDS:
            self._exit()
        if not self._pending or self._deferrals:
            return
        if _is_importing(frame):
            self.retry()
            return
        self._pending = False
        raise KeyboardInterrupt

    def begin_deferral(self) -> None:
        """Raise nothing until as many deferrals have ended as began; in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            self._deferrals += 1
            if self._deferrals == 1:
                self._deferred_at = time.monotonic()

    def end_deferral(self) -> None:
        """Allow what was received meanwhile to be raised, a moment later."""
        if threading.current_thread() is threading.main_thread():
            self._deferrals -= 1
            if self._pending and not self._deferrals:
                self.retry()

    def raise_again(self) -> None:
        """Raise once more what was raised where nobody could catch it."""
        self._pending = True
        self.retry()

    def retry(self) -> None:
        """Handle the signal again in a moment."""
        # Not threading.Timer, whose locks the interrupted code may hold.
        _thread.start_new_thread(self._signal_later, ())

    def end(self) -> None:
        """Watch no longer: the command has ended."""
        self._ended = True

    def _signal_later(self) -> None:
        time.sleep(RETRY_SECONDS)
        if not self._ended and self.received is not None:
            self._retrying = True
            _thread.interrupt_main(self.received)

    def _watch(self) -> None:
        """End the process where one deferral lasts too long after the signal."""
        while not self._ended:
            time.sleep(0.1)
            began = max(self._deferred_at, self._received_at)
            if self._deferrals and time.monotonic() - began > GRACE_SECONDS:
                self._exit()

    def _exit(self) -> None:
        assert self.received is not None
        os.write(2, f"Stopped by {self.received.name}\n".encode())
        os._exit(128 + self.received)


_current: Interruption | None = None


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn SIGINT, SIGTERM and SIGHUP into one KeyboardInterrupt while the block lasts."""
    global _current
    interruption = Interruption()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):  # Windows has none
        numbers.append(signal.SIGHUP)
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # only it may set signal handlers
        # nohup and shells ignore signals on behalf of what runs in the background.
        handlers = {
            number: handler
            for number in numbers
            if (handler := signal.getsignal(number)) != signal.SIG_IGN
        }

    def keep(lost: Any) -> None:
        # Python drops what is raised where nobody can catch it: in a weak reference's callback.
        if interruption.received and issubclass(lost.exc_type, KeyboardInterrupt):
            interruption.raise_again()
        else:
            hook(lost)

    outer, _current = _current, interruption
    hook, sys.unraisablehook = sys.unraisablehook, keep
    for number in handlers:
        signal.signal(number, interruption.handle)
    try:
        yield interruption
    finally:
        interruption.end()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
        _current = outer


def begin_deferral(*_: Any) -> None:
    """Put interruptions off until `end_deferral`; a pair may be within another."""
    if _current is not None:
        _current.begin_deferral()


def end_deferral(*_: Any) -> None:
    """Raise a moment later what was put off, if anything was."""
    if _current is not None:
        _current.end_deferral()


@contextmanager
def deferred() -> Iterator[None]:
    """Put interruptions off until the block ends, as long as `GRACE_SECONDS` at most."""
    begin_deferral()
    try:
        yield
    finally:
        end_deferral()


def _is_importing(frame: FrameType | None) -> bool:
    """Tell whether the import system is at work, whose lock would be held for ever."""
    return frame is not None and frame.f_globals.get("__name__") == "importlib._bootstrap"

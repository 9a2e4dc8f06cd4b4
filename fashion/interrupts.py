"""Turn signals into one KeyboardInterrupt, raised where interrupting is safe.

Code that must not be interrupted, such as a database transaction, defers it. Deferrals are bounded:
after a repeated signal or `GRACE_SECONDS` the process exits with the signal's exit code.
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
# On Ctrl-C, `mlflow run` sends its child a SIGTERM shortly after the terminal's SIGINT: that is not
# a repeated signal.
REPEATED_AFTER_SECONDS = 1.0
# Between attempts to deliver a deferred signal.
RETRY_SECONDS = 0.01


class Interruption:
    """The signal that a command has received, and whether it can be raised now.

    Attributes:
        received: the first signal, None if there was none.
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
        """Handle a signal: raise KeyboardInterrupt now, or schedule it for later."""
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
        """Defer interrupts until the matching `end_deferral`; no effect outside the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._deferrals += 1
            if self._deferrals == 1:
                self._deferred_at = time.monotonic()

    def end_deferral(self) -> None:
        """End a deferral; after the outermost, deliver a pending signal."""
        if threading.current_thread() is threading.main_thread():
            self._deferrals -= 1
            if self._pending and not self._deferrals:
                self.retry()

    def raise_again(self) -> None:
        """Raise the interrupt again, after it was raised where it could not be caught."""
        self._pending = True
        self.retry()

    def retry(self) -> None:
        """Deliver the signal again after `RETRY_SECONDS`."""
        # Not threading.Timer: the interrupted code may hold its locks.
        _thread.start_new_thread(self._signal_later, ())

    def end(self) -> None:
        """Stop watching, after the command has ended."""
        self._ended = True

    def _signal_later(self) -> None:
        time.sleep(RETRY_SECONDS)
        if not self._ended and self.received is not None:
            self._retrying = True
            _thread.interrupt_main(self.received)

    def _watch(self) -> None:
        """Exit if a deferral lasts longer than `GRACE_SECONDS` after the signal."""
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
    """Turn SIGINT, SIGTERM and SIGHUP into one KeyboardInterrupt during the block."""
    global _current
    interruption = Interruption()
    numbers = _signals()
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # others cannot set signal handlers
        # Keep signals ignored that nohup or a shell ignores for a background process.
        handlers = {
            number: handler
            for number in numbers
            if (handler := signal.getsignal(number)) != signal.SIG_IGN
        }

    def raise_unraisable(lost: Any) -> None:
        # Python drops exceptions raised in, for example, the callback of a weak reference.
        if interruption.received and issubclass(lost.exc_type, KeyboardInterrupt):
            interruption.raise_again()
        else:
            hook(lost)

    outer, _current = _current, interruption
    hook, sys.unraisablehook = sys.unraisablehook, raise_unraisable
    for number in handlers:
        signal.signal(number, interruption.handle)
    try:
        if handlers and hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        yield interruption
    finally:
        interruption.end()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
        _current = outer


def block() -> None:
    """Let signals wait until `interruptible` begins."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, _signals())


def _signals() -> list[signal.Signals]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):  # not on Windows
        numbers.append(signal.SIGHUP)
    return numbers


def begin_deferral(*_: Any) -> None:
    """Defer interrupts until `end_deferral`; pairs can be nested."""
    if _current is not None:
        _current.begin_deferral()


def end_deferral(*_: Any) -> None:
    """End a deferral; a deferred interrupt is raised shortly after."""
    if _current is not None:
        _current.end_deferral()


@contextmanager
def deferred() -> Iterator[None]:
    """Defer interrupts until the block ends, for at most `GRACE_SECONDS`."""
    begin_deferral()
    try:
        yield
    finally:
        end_deferral()


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether interrupting an import here could do harm.

    Its lock might never be released; and a module that is interrupted while it is executed, such as
    numpy's, may answer with an error of its own.
    """
    top = frame
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap" and (
            frame is top or frame.f_code.co_name == "_load_unlocked"
        ):
            return True
        frame = frame.f_back
    return False

"""Connect to the tracking store, and turn its errors into one-line messages."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import unquote, urlsplit, urlunsplit

import mlflow
from filelock import FileLock
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_TRACKING_PASSWORD,
    MLFLOW_TRACKING_URI,
    MLFLOW_TRACKING_USERNAME,
)

from fashion.errors import TrackingError
from fashion.files import state_dir
from fashion.interrupts import begin_deferral, deferred, end_deferral

START_IT = "start it, or set MLFLOW_TRACKING_URI"


def connect() -> None:
    """Check that the tracking store answers, so that nothing is trained in vain.

    A database that does not exist yet is created.

    Raises:
        TrackingError: it does not answer, or refuses.
    """
    _take_credentials_out_of_the_uri()
    _defer_interruptions_of_transactions()
    # Tables that are half made cannot be used, nor made.
    with refusals(START_IT), _first_use(mlflow.get_tracking_uri()), single_attempt(), deferred():
        mlflow.search_experiments(max_results=1)


def _defer_interruptions_of_transactions() -> None:
    """Let no interruption cut a transaction off.

    Left open it would lock SQLite's file, and this process could not say how its run ended.
    """
    if not mlflow.get_tracking_uri().startswith(("http:", "https:")):
        from sqlalchemy import event
        from sqlalchemy.orm import Session

        for name, handler in (
            ("after_transaction_create", begin_deferral),
            ("after_transaction_end", end_deferral),
        ):
            if not event.contains(Session, name, handler):
                event.listen(Session, name, handler)


@contextmanager
def _first_use(uri: str) -> Iterator[None]:
    """Let one process at a time in: two that make the tables of one database at once both fail."""
    locks = state_dir() / "locks"
    lock = FileLock(locks / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock")
    # Who may write nothing here may still read the store.
    with suppress(OSError):
        locks.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def refusals(remedy: str) -> Iterator[None]:
    """Turn whatever the tracking store raises in the block into a TrackingError of one line."""
    try:
        yield
    except Exception as error:  # every store raises errors of its own: requests', SQLAlchemy's, ...
        raise _refusal(error, remedy) from error


def _refusal(error: Exception, remedy: str) -> TrackingError:
    store = without_credentials(mlflow.get_tracking_uri())
    if "error code 401" in str(error):
        return TrackingError(
            f"the tracking server {store} does not know you: set MLFLOW_TRACKING_USERNAME and"
            " MLFLOW_TRACKING_PASSWORD"
        )
    return TrackingError(f"the tracking store {store} cannot be used ({reason(error)}): {remedy}")


@contextmanager
def single_attempt() -> Iterator[None]:
    """Make MLflow's HTTP client answer at once instead of retrying for minutes."""
    with environment(
        {MLFLOW_HTTP_REQUEST_MAX_RETRIES.name: "0", MLFLOW_HTTP_REQUEST_TIMEOUT.name: "10"}
    ):
        yield


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment, by which MLflow takes its settings."""
    saved = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def reason(error: BaseException) -> str:
    """Return an error in one line, without credentials."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return without_credentials(line)[:160]


def _take_credentials_out_of_the_uri() -> None:
    """Hand a server's name and password to MLflow where it shows them to nobody."""
    uri = urlsplit(mlflow.get_tracking_uri())
    if uri.scheme not in ("http", "https") or uri.username is None:
        return
    os.environ[MLFLOW_TRACKING_USERNAME.name] = unquote(uri.username)
    os.environ[MLFLOW_TRACKING_PASSWORD.name] = unquote(uri.password or "")
    bare = urlunsplit(uri._replace(netloc=uri.netloc.rpartition("@")[2]))
    os.environ[MLFLOW_TRACKING_URI.name] = bare
    mlflow.set_tracking_uri(bare)


def without_credentials(text: str) -> str:
    """Replace the name and password in each URL."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)

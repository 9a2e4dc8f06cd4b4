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
    """Check that the tracking store is reachable before anything is trained.

    A database that does not exist yet is created.

    Raises:
        TrackingError: the store is unreachable, or denies access.
    """
    _move_credentials_to_environment()
    _defer_interrupts_in_transactions()
    # An interrupt here would leave a half-created schema that MLflow can neither use nor complete.
    with refusals(START_IT), _first_use(mlflow.get_tracking_uri()), single_attempt(), deferred():
        mlflow.search_experiments(max_results=1)


def _defer_interrupts_in_transactions() -> None:
    """Defer interrupts while a database transaction is open.

    An interrupted transaction would leave SQLite's file locked, and the status of the run could not
    be written.
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
    """Serialise schema creation: of two processes that create it at the same time both fail."""
    locks = state_dir() / "locks"
    lock = FileLock(locks / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock")
    # Without a writable state folder the store may still be readable.
    with suppress(OSError):
        locks.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def refusals(remedy: str) -> Iterator[None]:
    """Turn any exception of the tracking store into a one-line TrackingError.

    Args:
        remedy: what the user can do about it, appended to the message.
    """
    try:
        yield
    except Exception as error:  # each store has its own: those of requests, SQLAlchemy, ...
        raise _refusal(error, remedy) from error


def _refusal(error: Exception, remedy: str) -> TrackingError:
    store = without_credentials(mlflow.get_tracking_uri())
    if "error code 401" in str(error):
        return TrackingError(
            f"authentication failed at the tracking server {store}: set MLFLOW_TRACKING_USERNAME"
            " and MLFLOW_TRACKING_PASSWORD"
        )
    return TrackingError(f"the tracking store {store} cannot be used ({reason(error)}): {remedy}")


@contextmanager
def single_attempt() -> Iterator[None]:
    """Make MLflow's HTTP client fail immediately instead of retrying for minutes."""
    with environment(
        {MLFLOW_HTTP_REQUEST_MAX_RETRIES.name: "0", MLFLOW_HTTP_REQUEST_TIMEOUT.name: "10"}
    ):
        yield


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which MLflow reads its configuration from, for the block."""
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
    """Return the first line of an error message, without credentials, in at most 160 characters."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return without_credentials(line)[:160]


def _move_credentials_to_environment() -> None:
    """Move user name and password from the URI, which MLflow prints, to environment variables."""
    uri = urlsplit(mlflow.get_tracking_uri())
    if uri.scheme not in ("http", "https") or uri.username is None:
        return
    os.environ[MLFLOW_TRACKING_USERNAME.name] = unquote(uri.username)
    os.environ[MLFLOW_TRACKING_PASSWORD.name] = unquote(uri.password or "")
    bare = urlunsplit(uri._replace(netloc=uri.netloc.rpartition("@")[2]))
    os.environ[MLFLOW_TRACKING_URI.name] = bare
    mlflow.set_tracking_uri(bare)


def without_credentials(text: str) -> str:
    """Replace user name and password in each URL by asterisks."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)

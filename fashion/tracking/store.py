"""Connect to the tracking store, and turn its errors into one-line messages."""

import atexit
import hashlib
import logging
import os
import re
import socket
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import mlflow
from filelock import FileLock, Timeout
from mlflow.environment_variables import (
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_TRACKING_PASSWORD,
    MLFLOW_TRACKING_URI,
    MLFLOW_TRACKING_USERNAME,
)

from fashion.errors import TrackingError
from fashion.files import state_dir
from fashion.interrupts import begin_deferral, deferred, end_deferral
from fashion.tracking import statistics

START_IT = "start it, or set MLFLOW_TRACKING_URI"
# How long to wait for another process that creates the tables of the same store.
SILENT_SECONDS = 5
LOCK_SECONDS = 120
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
REMARKS = ("(raised as a result of Query-invoked autoflush", "[SQL:", "[parameters:", "(Background")
REASON_CHARACTERS = 400
# A parameter of an address whose value is secret; a quotation mark after the address is not part of
# it.
SECRET = re.compile(
    r"([?&][^=&\s]*(?:password|passwd|pwd|token|secret|key)=)[^&\s]*?(?=['\"]?(?:[&\s]|$))", re.I
)

logger = logging.getLogger(__name__)


def connect() -> None:
    """Check that the tracking store is reachable before anything is trained.

    A database that does not exist yet is created. Statistics of a SQLite store are refreshed now,
    for what is asked next, and when the process ends, for what it adds.

    Raises:
        TrackingError: the store is unreachable, or denies access.
    """
    _move_credentials_to_environment()
    _defer_interrupts_in_transactions()
    # An interrupt here would leave a half-created schema that MLflow can neither use nor complete.
    uri = mlflow.get_tracking_uri()
    with refusals(START_IT):
        _check_listening(uri)
    with refusals(START_IT), _first_use(uri), single_attempt(), deferred():
        mlflow.search_experiments(max_results=1)
    if uri.startswith("sqlite:"):
        _keep_statistics(uri)


def _keep_statistics(uri: str) -> None:
    from sqlalchemy.engine import make_url

    database = Path(make_url(uri).database or "").absolute()
    statistics.refresh(database)
    atexit.unregister(statistics.refresh)
    atexit.register(statistics.refresh, database)


def is_server() -> bool:
    """Return whether the tracking store is a server, rather than a database or a folder."""
    return mlflow.get_tracking_uri().startswith(("http:", "https:"))


def _defer_interrupts_in_transactions() -> None:
    """Defer interrupts while a database transaction is open.

    An interrupted transaction would leave SQLite's file locked, and the status of the run could not
    be written.
    """
    if not is_server():
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
    with suppress(PermissionError, FileExistsError, NotADirectoryError):
        locks.mkdir(parents=True, exist_ok=True)
        _acquire(lock)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock) -> None:
    """Wait for a lock, and say so.

    Raises:
        TrackingError: another process holds it for longer than `LOCK_SECONDS`.
    """
    try:
        lock.acquire(timeout=SILENT_SECONDS)
    except Timeout:
        logger.warning("Waiting for another process that connects to the same tracking store")
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout as error:
            raise TrackingError(
                f"another process has held {lock.lock_file} for {LOCK_SECONDS} s: end that process,"
                " or delete the file"
            ) from error


def _check_listening(uri: str) -> None:
    """Raise OSError if a database server refuses connections: MLflow would try for 100 seconds."""
    if "://" not in uri or uri.startswith(("http:", "https:", "file:", "sqlite:")):
        return
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # MLflow says what is wrong with it
        return
    port = url.port or DATABASE_PORTS.get(url.get_backend_name())
    if url.host and port:
        socket.create_connection((url.host, port), timeout=10).close()


@contextmanager
def refusals(remedy: str) -> Iterator[None]:
    """Turn any exception of the tracking store into a one-line TrackingError.

    Args:
        remedy: what the user can do about it, appended to the message.
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:  # each store has its own: those of requests, SQLAlchemy, ...
        raise _refusal(error, remedy) from error


# What the user can do where the store could be reached; by a part of the error's message.
ADVICE = {
    "state is deleted": "restore it (mlflow experiments restore), or set MLFLOW_EXPERIMENT_NAME to"
    " another one",
    "readonly database": "make the file and its folder writable, or set MLFLOW_TRACKING_URI",
    "error code 403": "ask its administrator for permission",
    "migrate-filestore": "see there, or set MLFLOW_TRACKING_URI to another store",
}


def _refusal(error: Exception, remedy: str) -> TrackingError:
    store = without_credentials(mlflow.get_tracking_uri())
    text = str(error)
    if "error code 401" in text:
        return TrackingError(
            f"authentication failed at the tracking server {store}: set MLFLOW_TRACKING_USERNAME"
            " and MLFLOW_TRACKING_PASSWORD"
        )
    if remedy == START_IT:
        remedy = next((advice for part, advice in ADVICE.items() if part in text), remedy)
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


def without_progress_bar() -> AbstractContextManager[None]:
    """Let MLflow fetch artifacts within the block without drawing a progress bar."""
    return environment({MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.name: "false"})


def reason(error: BaseException) -> str:
    """Return the cause in an error's message: one line without credentials, shortened if long."""
    lines = [line.strip() for line in str(error).splitlines()]
    # SQLAlchemy surrounds the cause by remarks on the statement and its own behaviour.
    told = [line for line in lines if line and not line.startswith(REMARKS)]
    line = without_credentials(next(iter(told), type(error).__name__))
    return textwrap.shorten(line, REASON_CHARACTERS, placeholder=" ...")


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
    """Replace user name, password and secret parameters in each URL by asterisks."""
    # Of the store's own address the limits are known, whatever characters are between them.
    account = re.search(r"://(.+)@", mlflow.get_tracking_uri())
    if account:
        text = text.replace(f"{account[1]}@", "***@")
    text = re.sub(r"://\S*@", "://***@", text)
    return re.sub(SECRET, r"\1***", text)

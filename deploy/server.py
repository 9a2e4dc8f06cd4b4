"""Run the team's tracking server without Docker, to try and test it: python deploy/server.py

Like compose.yaml, but without containers: `mlflow server` with runs and accounts in PostgreSQL, and
with proxied artifacts. All data is in a temporary folder, which is deleted at the end.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import click

ADMIN_PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # noqa: S105, the name of a variable
STARTUP_SECONDS = 120


def postgresql_programs() -> Path | None:
    """Return the folder of initdb and postgres; on Debian it is not on PATH and has a version."""
    on_path = [Path(program).resolve() for program in [shutil.which("initdb")] if program]
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return next((program.parent for program in (*on_path, *debian)), None)


@contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    # In its own session, so that Ctrl-C reaches only this script, which stops everything in order.
    process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        with suppress(ProcessLookupError):  # in case a worker did not stop
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(answers: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if answers():
            return
        time.sleep(0.2)
    raise click.ClickException("the server did not start: see its messages above")


@contextmanager
def postgresql(programs: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Run PostgreSQL with its data in `folder`; yield the environment variables for libpq.

    It listens only on a socket in the folder, which others cannot access, so it needs no password.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    env |= {"PGHOST": str(folder), "PGUSER": "mlflow", "PGDATA": str(folder / "cluster")}
    # Do not pass the administrator's password to PostgreSQL.
    postgres_env = {name: value for name, value in env.items() if not name.startswith("MLFLOW")}
    options: dict[str, Any] = {"env": postgres_env, "cwd": folder}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        options |= {"user": "postgres", "group": "postgres", "extra_groups": []}
        shutil.chown(folder, "postgres")

    def run(program: str, *arguments: str) -> int:
        command: list[str | Path] = [programs / program, *arguments]
        return subprocess.run(command, stdout=subprocess.DEVNULL, **options).returncode

    initdb = ("initdb", "--username=mlflow", "--auth=trust", "--encoding=UTF8", "--locale=C")
    if run(*initdb, "--no-sync"):
        raise click.ClickException("initdb failed: see its messages above")
    postgres: list[str | Path] = [programs / "postgres", "-k", folder, "-c", "listen_addresses="]
    with running(postgres, **options) as process:
        wait_until(lambda: run("pg_isready", "--dbname=postgres") == 0, process)
        if run("createdb", "mlflow") or run("createdb", "mlflow_auth"):
            raise click.ClickException("createdb failed: see its messages above")
        yield env


@contextmanager
def mlflow_server(
    port: int, env: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `mlflow server` with the PostgreSQL database of `env`."""
    settings = {
        "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg:///mlflow",
        "MLFLOW_AUTH_CONFIG_PATH": str(Path(__file__).with_name("basic_auth.ini").resolve()),
        # Not a command-line option, which all users of the machine could read.
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
        # Background jobs are for evaluating language models, and leave files behind.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command: list[str | Path] = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "2"),
        *("--artifacts-destination", folder / "artifacts"),
    ]

    def healthy() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
            return True
        return False

    with running(command, env=env | settings, cwd=folder) as process:
        wait_until(healthy, process)
        yield process


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def stop(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def server(port: int) -> None:
    """Serve on 127.0.0.1 until Ctrl-C or SIGTERM, then delete all data.

    The administrator is `admin`, with the password in MLFLOW_AUTH_ADMIN_PASSWORD.
    """
    programs = postgresql_programs()
    if programs is None:
        raise click.ClickException("PostgreSQL is not installed: on Debian, apt install postgresql")
    if not os.environ.get(ADMIN_PASSWORD):
        raise click.ClickException(f"{ADMIN_PASSWORD} is not set: use 12 characters or more")
    if not is_free(port):  # another server's answers would look like ours
        raise click.ClickException(f"port {port} is in use: choose another with --port")
    signal.signal(signal.SIGTERM, stop)
    with (
        tempfile.TemporaryDirectory(prefix="mlflow-") as name,
        postgresql(programs, Path(name)) as env,
        mlflow_server(port, env, Path(name)) as process,
    ):
        click.echo(f"Ready: http://127.0.0.1:{port}")
        process.wait()
    raise click.ClickException("mlflow server has stopped: see its messages above")


if __name__ == "__main__":
    server()

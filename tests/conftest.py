"""The order of the tests and their shares between processes; what tests import. For fixtures see
`fixtures.py`."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from click.testing import Result
    from xdist.remote import Producer

    from fashion.data.dataset import Subset

ROOT = Path(__file__).parent.parent
# What takes longer hangs; a busy machine may take many times as long as a quiet one.
HANG_SECONDS = 1500


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rounds", type=int, default=4, help="How often the slow tests of faults try each."
    )
    parser.addoption("--screenshots", help="Folder for pictures of MLflow's UI.")


def pytest_configure(config: pytest.Config) -> None:
    # The process that only hands tests out need not import PyTorch and MLflow, which takes seconds.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses"):
        config.pluginmanager.import_plugin("tests.fixtures")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that no worker is left with one when others have ended."""
    items.sort(key=_seconds, reverse=True)


def _seconds(item: pytest.Item) -> float:
    """Return about how long a test takes."""
    slow = item.get_closest_marker("slow")
    if slow is not None:
        return slow.kwargs.get("seconds", 30)
    return 10 if _is_long(item.nodeid) else 1


def _is_long(nodeid: str) -> bool:
    return any(part in nodeid for part in ("/system/", "/sweeps/", "/test_sanitizers.py"))


class Scheduling(LoadScopeScheduling):
    """Gives the workers whole files, which have fixtures of their own, but long tests singly."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if Path(file).name in ("test_concurrency.py", "test_shared_server.py"):
            return "tracking server"
        return nodeid if _is_long(nodeid) else file


# Not `--dist loadgroup`: under pytest 9.2, pytest-xdist 3.8 overlooks the groups.
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)


def assert_one_line(result: Result, exit_code: int = 1) -> str:
    """Check that the command failed with a message and without a traceback; return it."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("Error: ")
    return result.stderr


def head(subset: Subset, size: int) -> Subset:
    """Return the first images of a subset."""
    return replace(subset, pixels=subset.pixels[:size], labels=subset.labels[:size])


def free_port() -> int:
    """Return a TCP port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass(frozen=True)
class TrackingServer:
    """A team's server, as someone with an account sees it."""

    url: str
    username: str
    password: str

    @property
    def env(self) -> dict[str, str]:
        """The variables by which MLflow's clients find it."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": self.username,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

"""A Click command with one-line error messages, and exit codes for signals."""

import getpass
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from entrypoints.cli.streams import copied_output, tolerant_streams
from fashion.errors import FashionError, SettingError, printable
from fashion.interrupts import interruptible
from fashion.settings.experiment import meant_by
from fashion.tracking import launcher


class Command(click.Command):
    """A command whose options can be spelled with - or _, because MLflow uses both."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {
            "token_normalize_func": lambda name: name.replace("_", "-"),
            **self.context_settings,
        }

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with self._refusal_in_run():
            try:
                return super().parse_args(ctx, args)
            except click.NoSuchOption as error:
                meant = f"--{meant_by(error.option_name.lstrip('-'))}".replace("_", "-")
                if any(meant in option.opts for option in self.params):
                    message = f"{error.message} Did you mean {meant!r}?"
                    raise click.NoSuchOption(error.option_name, message, ctx=ctx) from error
                raise

    def invoke(self, ctx: click.Context) -> Any:
        _prepare_environment()
        # Else mlflow.pytorch, when imported, sets the root logger to ERROR: our warnings would end.
        to_stderr = logging.lastResort or logging.StreamHandler()
        logging.basicConfig(handlers=[to_stderr], format="%(message)s")
        with tolerant_streams(), interruptible() as interruption, self._refusal_in_run():
            try:
                return self._invoke(ctx)
            except SettingError as error:
                raise usage_error(error, ctx) from error
            except FashionError as error:
                raise click.ClickException(printable(str(error))) from error
            except KeyboardInterrupt:
                if interruption.received is None:
                    raise
                if run_id := launcher.unopened_run():
                    launcher.restore_killed_later(run_id)
                click.echo(f"Stopped by {interruption.received.name}", err=True)
                ctx.exit(128 + interruption.received)

    def _invoke(self, ctx: click.Context) -> Any:
        """Run the command; the run that `mlflow run` created says what it printed.

        A command that opens that run, to train for example, describes it itself.
        """
        if not launcher.unopened_run():
            return super().invoke(ctx)
        with copied_output(launcher.LONGEST_NOTE) as printed:
            result = super().invoke(ctx)
            if (run_id := launcher.unopened_run()) and printed():
                with suppress(Exception):  # it is on the terminal in any case
                    launcher.describe(run_id, str(self.name), printed())
            return result

    @contextmanager
    def _refusal_in_run(self) -> Iterator[None]:
        """Say in the run that `mlflow run` created why the command was refused, if it was."""
        try:
            yield
        except click.ClickException as error:
            run_id = launcher.unopened_run()
            if run_id:
                with suppress(Exception):  # the message is printed in any case
                    launcher.refuse(run_id, str(self.name), error.format_message())
            raise


def _prepare_environment() -> None:
    """Set variables that matplotlib, MLflow and torch read when they are imported."""
    # A notebook hands its own backend on to the commands that it starts.
    os.environ["MPLBACKEND"] = "agg"
    # Models have requirements of their own, fewer than those of the project.
    os.environ["MLFLOW_UV_AUTO_DETECT"] = "false"
    try:
        getpass.getuser()
    except (KeyError, OSError):  # in a container whose user has no name
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def usage_error(error: SettingError, ctx: click.Context | None = None) -> click.UsageError:
    """Convert a SettingError to Click's usage error, with exit code 2."""
    sentence = error.problem if error.problem.endswith("?") else f"{error.problem}."
    if not error.option:
        return click.UsageError(sentence, ctx)
    hint = f"--{error.option.replace('_', '-')}"
    return click.BadParameter(sentence, ctx, param_hint=f"'{hint}'")


def report_written(path: str | Path) -> None:
    """Say where a file or folder was written: `mlflow run` changes the working directory."""
    click.echo(f"Wrote {printable(str(Path(path).absolute()))}", err=True)

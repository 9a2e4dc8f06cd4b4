"""A Click command with one-line error messages, and exit codes for signals."""

import logging
from typing import Any

import click

from fashion.errors import FashionError, SettingError, printable
from fashion.interrupts import interruptible


class Command(click.Command):
    """A command whose options can be spelled with - or _, because MLflow uses both."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {
            "token_normalize_func": lambda name: name.replace("_", "-"),
            **self.context_settings,
        }

    def invoke(self, ctx: click.Context) -> Any:
        # Else mlflow.pytorch, when imported, sets the root logger to ERROR: our warnings would end.
        to_stderr = logging.lastResort or logging.StreamHandler()
        logging.basicConfig(handlers=[to_stderr], format="%(message)s")
        with interruptible() as interruption:
            try:
                return super().invoke(ctx)
            except SettingError as error:
                raise usage_error(error, ctx) from error
            except FashionError as error:
                raise click.ClickException(printable(str(error))) from error
            except KeyboardInterrupt:
                if interruption.received is None:
                    raise
                click.echo(f"Stopped by {interruption.received.name}", err=True)
                ctx.exit(128 + interruption.received)


def usage_error(error: SettingError, ctx: click.Context | None = None) -> click.UsageError:
    """Convert a SettingError to Click's usage error, with exit code 2."""
    if not error.option:
        return click.UsageError(f"{error}.", ctx)
    hint = f"--{error.option.replace('_', '-')}"
    return click.BadParameter(f"{error.problem}.", ctx, param_hint=f"'{hint}'")

"""Run the benchmarks of README.md: uv run python -m benchmarks

Prints tables, writes all measurements as JSON, and logs both to MLflow.
"""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import mlflow

from benchmarks import evaluation, neighbours, processes, training
from benchmarks.timing import machine
from fashion.files import replacing
from fashion.settings.presets import PRESETS

# Each returns a Markdown table and its measurements.
SECTIONS: dict[str, Callable[[int], tuple[str, dict]]] = {
    "model_logging": evaluation.model_logging,
    "evaluation": evaluation.evaluation,
    "floor": training.floor,
    "processes": processes.processes,
    "training": training.training,
    "neighbours": neighbours.neighbours,
    "accuracy": training.accuracy,
    "presets": training.presets,
}
# Sections that are repeated over seeds.
OVER_SEEDS = ("accuracy", "presets")


@click.command()
@click.option("--repetitions", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--only",
    type=click.Choice(list(SECTIONS)),
    multiple=True,
    help="Run only this section; can be repeated.",
)
@click.option("--seeds", type=click.IntRange(min=2), default=5, show_default=True)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="fast",
    show_default=True,
    help="Preset of the section presets.",
)
@click.option("--output", default="benchmarks.json", show_default=True, help="JSON file to write.")
def main(repetitions: int, only: tuple[str, ...], seeds: int, preset: str, output: str) -> None:
    """Run all benchmarks except benchmarks.scale: 90 minutes on two cores."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    results: dict = {"machine": machine(), "repetitions": repetitions}
    click.echo(", ".join(f"{name} {value}" for name, value in machine().items()))
    sections = SECTIONS | {"presets": partial(training.presets, preset=preset)}
    tables = []
    for name, section in sections.items():
        if not only or name in only:
            text, results[name] = section(seeds if name in OVER_SEEDS else repetitions)
            tables.append(f"## {name.replace('_', ' ')}\n\n{text}\n")
            click.echo(f"\n{tables[-1]}")
            with replacing(Path(output)) as file:
                file.write_text(json.dumps(results, indent=1))
    mlflow.set_experiment("benchmarks")
    with mlflow.start_run(run_name="benchmarks"):
        mlflow.log_params({**machine(), "repetitions": repetitions})
        mlflow.log_dict(results, "benchmarks.json")
        mlflow.log_text("\n".join(tables), "benchmarks.md")


if __name__ == "__main__":
    main()

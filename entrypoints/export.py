"""Write a registered model to a file: mlflow run . -e export -P format=onnx"""

import re
from pathlib import Path
from typing import Any

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command
from entrypoints.cli.data import Data
from entrypoints.cli.options import data_options, model_uri_option
from entrypoints.cli.types import FileStem, UserPath
from fashion import advice
from fashion.settings.task import MODEL_NAME

CHECKED_IMAGES = 300


@click.command(cls=Command)
@model_uri_option
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["pth", "onnx"]),
    default="pth",
    show_default=True,
    help="pth writes the state dict; onnx needs the dependency group onnx.",
)
@click.option(
    "--name",
    type=FileStem(),
    default="",
    help=f"File name without suffix. Default: {MODEL_NAME}; of a model of other data, their name.",
)
@click.option(
    "--output-dir",
    type=UserPath(),
    default="models",
    metavar="DIRECTORY",
    show_default=True,
    help="Directory to write the file to.",
)
@data_options
def export(
    model_uri: str, output_format: str, name: str, output_dir: str, **data_options: Any
) -> None:
    """Write a model as NAME.pth or NAME.onnx and verify the written file."""
    if output_format == "onnx":
        advice.require("onnx", "onnx", "onnxruntime", "onnxscript")

    import torch

    from fashion.inference import classifier, export
    from fashion.tracking import models, query, store

    data = Data(**data_options)
    uri = model_uri or data.champion_uri
    store.connect()
    model, _, task = models.load_calibrated(query.model_uri(uri))
    classifier.check(model, uri, task)
    # The name of data may have characters that no file should have.
    stem = name or re.sub(r"[^A-Za-z0-9_-]", "_", task.model_name)
    path = Path(output_dir, f"{stem}.{output_format}").absolute()
    if output_format == "onnx":
        test = data.dataset.test
        classifier.check_data(uri, task, test.task)
        images = test.take(torch.arange(min(CHECKED_IMAGES, len(test))))
        checked = export.to_onnx(model, path, images)
    else:
        checked = export.to_pth(model, path)
    click.echo(f"{path}: {path.stat().st_size:,} bytes\n{checked}")


if __name__ == "__main__":
    program.run(export)

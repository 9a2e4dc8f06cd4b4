"""Write a registered model to a file: mlflow run . -e export -P format=onnx"""

from pathlib import Path

import click

from entrypoints.cli.command import Command
from entrypoints.cli.options import data_dir_option, model_uri_option
from entrypoints.cli.types import FileStem, UserPath
from fashion import advice
from fashion.settings.task import MODEL_NAME


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
    default=MODEL_NAME,
    show_default=True,
    help="File name without suffix.",
)
@click.option(
    "--output-dir",
    type=UserPath(),
    default="models",
    metavar="DIRECTORY",
    show_default=True,
    help="Directory to write the file to.",
)
@data_dir_option
def export(model_uri: str, output_format: str, name: str, output_dir: str, data_dir: str) -> None:
    """Write a model as NAME.pth or NAME.onnx and verify the written file."""
    if output_format == "onnx":
        advice.require("onnx", "onnx", "onnxruntime", "onnxscript")

    from fashion.data.dataset import load_dataset
    from fashion.inference import classifier, export
    from fashion.tracking import models, query, store

    path = Path(output_dir, f"{name}.{output_format}").absolute()
    store.connect()
    model = models.load(query.model_uri(model_uri))
    classifier.check(model, model_uri)
    if output_format == "onnx":
        images = load_dataset(data_dir).test.images[:300]
        checked = export.to_onnx(model, path, images)
    else:
        checked = export.to_pth(model, path)
    click.echo(f"{path}: {path.stat().st_size:,} bytes\n{checked}")


if __name__ == "__main__":
    export()

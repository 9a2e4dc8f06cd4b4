"""Write a registered model to a file: mlflow run . -e export -P format=onnx"""

import re
from pathlib import Path
from typing import Any

import click

from entrypoints.options import Command, data_dir_option


class FileStem(click.ParamType):
    """The name of a file without its suffix: in no folder, and not hidden."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", value):
            self.fail(
                f"{value!r} may have letters, digits and ._- only, and no dot first.", param, ctx
            )
        return value


@click.command(cls=Command)
@click.option(
    "--model-uri",
    default="models:/fashion-mnist-cnn@champion",
    show_default=True,
    help="Which model to export.",
)
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["pth", "onnx"]),
    default="pth",
    show_default=True,
    help="pth is the state dict; onnx needs uv sync --group onnx.",
)
@click.option(
    "--name",
    type=FileStem(),
    default="fashion-mnist-cnn",
    show_default=True,
    help="The file's name without its suffix.",
)
@click.option(
    "--output-dir",
    default="models",
    metavar="DIRECTORY",
    show_default=True,
    help="Where to put the file.",
)
@data_dir_option
def export(model_uri: str, output_format: str, name: str, output_dir: str, data_dir: str) -> None:
    """Write a model as FILE.pth or FILE.onnx and check what was written."""
    from fashion.data.dataset import load_dataset
    from fashion.inference import export
    from fashion.tracking import models, store

    path = Path(output_dir, f"{name}.{output_format}")
    store.connect()
    model = models.load(model_uri)
    if output_format == "onnx":
        export.require_onnx()
        images = load_dataset(data_dir).test.images[:300]
        checked = export.to_onnx(model, path, images)
    else:
        checked = export.to_pth(model, path)
    click.echo(f"{path}: {path.stat().st_size:,} bytes\n{checked}")


if __name__ == "__main__":
    export()

"""Write a model to a file that other programs load, and check that file before it is kept."""

import importlib.util
import io
from pathlib import Path

import torch
from torch import Tensor, nn

from fashion.data.dataset import to_float
from fashion.errors import FashionError
from fashion.files import replacing
from fashion.settings.task import IMAGE_SHAPE
from fashion.training import evaluation

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
# One image alone, and batches that leave a smaller one at the end.
CHECKED_BATCH_SIZES = (1, 7)
# Relative and absolute, as torch.allclose's: onnxruntime sums float32 in another order than torch,
# which shows in the sixth or seventh digit. A wrong operator or weight shows in the first.
TOLERANCE = 1e-4


class ExportError(FashionError):
    """The file does not hold the model that was exported, or a package is missing."""


def require_onnx() -> None:
    """Check that the optional packages of the ONNX export are installed.

    Raises:
        ExportError: one is missing.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{', '.join(missing)} not installed: uv sync --group onnx")


def to_pth(model: nn.Module, path: Path) -> str:
    """Write the state dict, then read it back and compare it tensor by tensor.

    Returns:
        What was checked, in one line.

    Raises:
        ExportError: it differs; a file that was there before stays.
        files.FileError: it cannot be written.
    """
    state = model.state_dict()
    content = io.BytesIO()
    torch.save(state, content)
    with replacing(path) as file:
        file.write_bytes(content.getvalue())
        try:
            loaded = torch.load(file, weights_only=True)
            torch.testing.assert_close(loaded, state, rtol=0, atol=0, equal_nan=True)
        except Exception as error:  # unequal, or whatever a damaged file leads torch.load into
            raise ExportError(f"{path} does not read back as it was written: not kept") from error
    return f"read back with weights_only=True: all {len(state)} tensors are equal"


def to_onnx(model: nn.Module, path: Path, images: Tensor) -> str:
    """Write the model as ONNX, then compare onnxruntime's logits with torch's.

    The file's input "images" is float32 of shape (batch, 1, 28, 28) in [0, 1], its output "logits"
    float32 of shape (batch, 10); the batch may have any size.

    Args:
        model: as `registry.load` returns it, or any module in evaluation mode.
        path: the file to write.
        images: uint8, shape (N, 1, 28, 28), to compare on.

    Returns:
        What was checked, in one line.

    Raises:
        ExportError: its logits differ by more than `TOLERANCE`; a file that was there before stays.
        files.FileError: it cannot be written.
    """
    # Imported here because they are an optional extra.
    import onnxruntime
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # A batch of two keeps the dimension dynamic: torch.export fixes a dimension of size 1.
    example = (torch.zeros(2, *IMAGE_SHAPE),)
    shapes = ({0: torch.export.Dim("batch")},)
    # A loaded model cannot be switched to evaluation mode, and torch.onnx.export warns of that.
    # It was traced in that mode, and torch.export takes it as it is.
    program = torch.onnx.export(
        torch.export.export(model, example, dynamic_shapes=shapes),
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    # The exporter notes on every operator which files of this machine it came from.
    ClearMetadataAndDocStringPass()(program.model)

    expected = evaluation.predict(model, images)
    with replacing(path) as file:
        program.save(file, external_data=False)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        for size in CHECKED_BATCH_SIZES:
            logits = torch.cat(
                [
                    torch.from_numpy(session.run(None, {"images": to_float(batch).numpy()})[0])
                    for batch in images.split(size)
                ]
            )
            if not torch.allclose(logits, expected, rtol=TOLERANCE, atol=TOLERANCE):
                raise ExportError(
                    f"{path}'s logits are not the model's in batches of {size}: not kept"
                )
    sizes = " and ".join(map(str, CHECKED_BATCH_SIZES))
    return (
        f"onnxruntime's logits of {len(images)} test images, in batches of {sizes}, are torch's"
        f" (to {TOLERANCE:g})"
    )

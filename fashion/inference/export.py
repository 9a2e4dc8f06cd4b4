"""Export a model to a file and verify the file before it replaces an existing one."""

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from fashion.data.dataset import to_float
from fashion.errors import FashionError
from fashion.files import replacing
from fashion.training import evaluation

# Single images, and batches with a smaller last one.
CHECKED_BATCH_SIZES = (1, 7)
# Relative and absolute, as in torch.allclose: onnxruntime sums float32 in a different order than
# torch, which changes the sixth or seventh digit. A wrong operator or weight changes the first.
LOGIT_TOLERANCE = 1e-4


class ExportError(FashionError):
    """The file does not contain the exported model."""


def to_pth(model: nn.Module, path: Path) -> str:
    """Write the state dict, then read it back and compare it tensor by tensor.

    Returns:
        One line that says what was verified.

    Raises:
        ExportError: the file differs from the model; an existing file is not replaced.
        files.FileError: the file cannot be written.
    """
    state = model.state_dict()
    content = io.BytesIO()
    torch.save(state, content)
    with replacing(path) as file:
        file.write_bytes(content.getvalue())
        try:
            loaded = torch.load(file, weights_only=True)
            torch.testing.assert_close(loaded, state, rtol=0, atol=0, equal_nan=True)
        except Exception as error:  # unequal, or any error of torch.load on a damaged file
            raise ExportError(f"{path} differs when read back: file discarded") from error
    return f"read back with weights_only=True: all {len(state)} tensors are equal"


def to_onnx(model: nn.Module, path: Path, images: Tensor) -> str:
    """Write the model as ONNX, then compare onnxruntime's logits with torch's.

    The input "images" is float32 of shape (batch, channels, height, width) in [0, 1], the output
    "logits" float32 of shape (batch, classes), with any batch size.

    Args:
        model: a module in evaluation mode, or the result of `models.load`.
        path: the file to write.
        images: uint8, shape (N, channels, height, width), to compare on.

    Returns:
        One line that says what was verified.

    Raises:
        ExportError: the logits differ by more than `LOGIT_TOLERANCE`; an existing file is not
            replaced.
        files.FileError: the file cannot be written.
    """
    # Imported here because they are an optional dependency group.
    import onnxruntime
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # A batch of two keeps the dimension dynamic: torch.export fixes a dimension of size 1.
    example = (torch.zeros(2, *images.shape[1:]),)
    shapes = ({0: torch.export.Dim("batch")},)
    # A loaded model cannot be switched to evaluation mode, and torch.onnx.export warns about it.
    # It was traced in that mode, and torch.export accepts it.
    program = torch.onnx.export(
        torch.export.export(model, example, dynamic_shapes=shapes),
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    # The exporter stores this machine's source paths with each operator.
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
            if not torch.allclose(logits, expected, rtol=LOGIT_TOLERANCE, atol=LOGIT_TOLERANCE):
                raise ExportError(
                    f"logits of {path} differ from the model's in batches of {size}: file discarded"
                )
    sizes = " and ".join(map(str, CHECKED_BATCH_SIZES))
    return (
        f"onnxruntime's logits of {len(images)} test images, in batches of {sizes}, equal torch's"
        f" (within {LOGIT_TOLERANCE:g})"
    )

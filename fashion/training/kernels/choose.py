"""Choose the kernels that compute a model: native ones or PyTorch's."""

import logging
from collections.abc import Callable
from functools import cache, partial

from torch import Tensor, nn

from fashion.settings.experiment import Recipe
from fashion.training import distributed
from fashion.training.kernels import conv3x3, mlp
from fashion.training.kernels.compile import KernelError, library

logger = logging.getLogger(__name__)


def resolve_kernels(recipe: Recipe, model: nn.Module) -> str:
    """Return "native" or "torch": what `recipe.kernels` means for training `model` where it is.

    Raises:
        KernelError: it is "native" and this machine cannot compile them, or several processes
            train, whose gradients only PyTorch's kernels share.
    """
    if distributed.world_size() > 1:
        if recipe.kernels == "native":
            raise KernelError("the native kernels train in one process: leave kernels or nproc out")
        return "torch"
    served = (conv3x3.supports(model) and recipe.precision == "float32") or (
        mlp.supports_native(model) and recipe.is_plain_sgd
    )
    return "native" if served and _native(recipe.kernels) else "torch"


def _native(kernels: str) -> bool:
    if kernels == "torch":
        return False
    try:
        library()
    except KernelError as error:
        if kernels == "native":
            raise
        _warn_once(str(error))
        return False
    return True


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _forward(model: nn.Module, kernels: str) -> Callable[[Tensor], Tensor]:
    if conv3x3.supports(model) and _native(kernels):
        return partial(conv3x3.forward, model)
    return model

"""One training run, as asked for, and the model and parameters that it means on this machine."""

import platform
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from fashion import data, distributed, engine, models
from fashion.models import Architecture
from fashion.recipe import Recipe


@dataclass(frozen=True)
class Experiment:
    """One training run, as asked for.

    Attributes:
        model: its name.
        architecture: its options.
        val_size: number of training images held out for validation.
        device: "auto", "cpu", "cuda" or "mps".
        recipe: how to train it.
        preset: where settings come from that were not given.
        tta: whether to log accuracies with test-time augmentation too.
    """

    model: str
    architecture: Architecture
    val_size: int
    device: str
    recipe: Recipe
    preset: str = "lab"
    tta: bool = False

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """Return the untrained model, where it will be trained, and the parameters to log.

        Raises:
            DeviceError: this machine has no such device.
            KernelError, ModelError: as for `engine.resolve_kernels` and `models.build`.
        """
        device = engine.resolve_device(self.device)
        model = models.build(self.model, self.recipe.seed, self.architecture)
        model.to(device)
        params = {
            "model": self.model,
            "preset": self.preset,
            "tta": self.tta,
            **models.options_of(self.model, self.architecture),
            **asdict(self.recipe),
            "augment": ",".join(self.recipe.augment),
            "val_size": self.val_size,
            "split_seed": data.SPLIT_SEED,
            "device": self.device,
            "device_name": (
                torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            ),
            "kernels_used": engine.resolve_kernels(self.recipe, model),
            "nproc": distributed.world_size(),
            "threads": torch.get_num_threads(),
            # A text: its own class of versions is none that a checkpoint may hold.
            "torch_version": str(torch.__version__),
            "python_version": platform.python_version(),
            "num_parameters": models.count_parameters(model),
        }
        return model, params

"""Build what an experiment describes, on this machine."""

import platform
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from fashion.errors import DeviceError
from fashion.models import catalogue
from fashion.settings.experiment import Experiment
from fashion.settings.task import SPLIT_SEED
from fashion.training import distributed
from fashion.training.kernels import choose


def build(experiment: Experiment) -> tuple[nn.Module, dict[str, Any]]:
    """Return the untrained model, on the device it will be trained on, and the parameters to log.

    Raises:
        DeviceError: this machine has no such device.
        KernelError, ModelError: as for `choose.resolve_kernels` and `catalogue.build`.
    """
    device = resolve_device(experiment.device)
    model = catalogue.build(experiment.model, experiment.recipe.seed, experiment.architecture)
    model.to(device)
    params = {
        "model": experiment.model,
        "preset": experiment.preset,
        "tta": experiment.tta,
        **catalogue.options_of(experiment.model, experiment.architecture),
        **asdict(experiment.recipe),
        "augment": ",".join(experiment.recipe.augment),
        "val_size": experiment.val_size,
        "split_seed": SPLIT_SEED,
        "device": experiment.device,
        "device_name": (
            torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        ),
        "kernels_used": choose.resolve_kernels(experiment.recipe, model),
        "nproc": distributed.world_size(),
        "threads": torch.get_num_threads(),
        # A text: its own class of versions is none that a checkpoint may hold.
        "torch_version": str(torch.__version__),
        "python_version": platform.python_version(),
        "num_parameters": catalogue.count_parameters(model),
    }
    return model, params


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the first present of cuda, mps and cpu.

    Raises:
        DeviceError: this machine has no such device.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, available in present.items() if available)
    if not present[name]:
        available = ", ".join(device for device in present if present[device])
        raise DeviceError(f"no {name} device on this machine; it has: {available}")
    return torch.device(name)

"""Check an experiment against this machine, and build its model."""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fashion.data.dataset import Subset, to_float
from fashion.errors import DeviceError, SettingError
from fashion.models import catalogue, whitening
from fashion.settings.experiment import Conditions, Experiment
from fashion.settings.task import SPLIT_SEED
from fashion.training import distributed
from fashion.training.kernels.choose import choose
from fashion.training.kernels.compile import KernelError, library
from fashion.training.kernels.threads import limit_pytorch


def check(experiment: Experiment) -> None:
    """Check that this machine can train the experiment, without building the model.

    Raises:
        SettingError: the model is unknown or does not support an option, the file of weights is
            missing, or this machine lacks the device or a compiler for the kernels.
    """
    catalogue.options_of(experiment.model, experiment.architecture)
    weights = experiment.architecture.pretrained
    if weights not in ("", "default") and not Path(weights).is_file():
        raise SettingError(f"{weights} is not a file", "pretrained")
    try:
        resolve_device(experiment.device)
    except DeviceError as error:
        raise SettingError(str(error), "device") from error
    if experiment.recipe.kernels == "native":
        try:
            library()
        except KernelError as error:
            raise SettingError(str(error), "kernels") from error


def build(experiment: Experiment, data: Subset) -> tuple[nn.Module, dict[str, Any]]:
    """Return the untrained model, on its device, and the parameters to log.

    Args:
        experiment: the experiment.
        data: the training images.

    Raises:
        DeviceError, DistributedError: this machine does not have the device, or one a process.
        KernelError, ModelError: as for `kernels.choose` and `catalogue.build`.
    """
    device = resolve_device(experiment.device)
    limit_pytorch()
    if device.type == "cuda":
        distributed.use_own_gpu()
    model = catalogue.build(
        experiment.model, experiment.recipe.seed, experiment.architecture, data.task
    )
    if experiment.architecture.whiten:
        _, height, width = data.task.shape
        count = min(len(data), max(1, whitening.PATCHES // (height * width)))
        # From all over the data, which may be in the order of its classes.
        rows = torch.arange(count) * len(data) // count
        whitening.fit(model, to_float(data.take(rows)))
    model.to(device)
    conditions = Conditions(
        kernels_used=choose(model, experiment.recipe, distributed.world_size(), data.task).name,
        device_type=device.type,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        nproc=distributed.world_size(),
        threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        split_seed=SPLIT_SEED,
        train_digest=data.digest,
        image_shape=data.task.size,
        classes=len(data.task.classes),
        # As a string: checkpoints must not contain the class TorchVersion.
        torch_version=str(torch.__version__),
        python_version=platform.python_version(),
        num_parameters=catalogue.count_parameters(model),
    )
    # Log only those options of the architecture that the model supports.
    supported = catalogue.options_of(experiment.model, experiment.architecture)
    unsupported = asdict(experiment.architecture).keys() - supported.keys()
    options = {
        name: value for name, value in experiment.to_dict().items() if name not in unsupported
    }
    return model, options | asdict(conditions)


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the first available of cuda, mps and cpu.

    Raises:
        DeviceError: this machine does not have the device.
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


def check_processes(nproc: int, experiment: Experiment) -> None:
    """Check that `nproc` processes on this machine can train the experiment.

    Raises:
        SettingError: they cannot.
    """
    recipe = experiment.recipe
    if recipe.batch_size < nproc:
        raise SettingError(f"batch_size {recipe.batch_size} is less than nproc {nproc}")
    if recipe.kernels == "native":
        raise SettingError("the native kernels support one process only: omit nproc")
    if resolve_device(experiment.device).type == "cuda" and torch.cuda.device_count() < nproc:
        raise SettingError(
            f"{nproc} processes need {nproc} GPUs, but this machine has {torch.cuda.device_count()}"
        )

"""The settings of a training run: architecture, recipe, data split and device.

Each field declares one option; see `option.py` for what is derived from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any, Self

from fashion.errors import SettingError
from fashion.settings.option import fact, flatten, option, options_of, read
from fashion.settings.presets import PRESETS
from fashion.settings.task import FASHION_MNIST

OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
SCHEDULES = ("constant", "cosine", "one-cycle")
PRECISIONS = ("float32", "bfloat16")
AUGMENTATIONS = ("flip", "alternate", "shift", "erase")
DEVICES = ("auto", "cpu", "cuda", "mps")
KERNELS = ("auto", "native", "torch")
CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True)
class Architecture:
    """Options of the networks. Each network has some of them."""

    hidden_units: int = option(
        10, "Width of the hidden layer, or channels of the convolutions.", min=1, max=4096
    )
    blocks: int = option(
        2, "Number of blocks of the CNN, or per stage of the residual network.", min=1, max=4
    )
    dropout: float = option(
        0.0,
        "Probability of dropping a feature before the classifier during training.",
        min=0,
        max=1,
        max_open=True,
    )
    batch_norm: bool = option(False, "Add batch normalisation after each convolution of the CNN.")
    whiten: bool = option(
        False,
        "Fix the first layer's filters to those that decorrelate the training images' patches, for"
        " compact.",
    )
    pretrained: str = option(
        "",
        "Initial weights of a torchvision model: a file, or default to download the best ones.",
        metavar="FILE",
    )


LAB_ARCHITECTURE = Architecture()


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are those of the lab.

    Raises:
        SettingError: two settings contradict each other.
    """

    epochs: int = option(3, "Number of passes over the training images.", min=1)
    batch_size: int = option(32, "Images per optimisation step.", min=1)
    lr: float = option(
        0.1,
        "Learning rate; with a schedule, its maximum.",
        min=0,
        min_open=True,
        also_called=("learning_rate", "step_size"),
    )
    # Runs that differ only in the seed are repetitions of one experiment.
    seed: int = option(
        42,
        "Seed of the initial weights, the order of the images, augmentation and dropout.",
        min=0,
        max=2**32 - 1,
        preset=False,
        decides=False,
    )
    # `kernels_used` decides instead: the meaning of "auto" depends on the machine.
    kernels: str = option(
        "auto",
        "Kernels for the lab's models on a CPU: torch reproduces the lab's results bit for bit;"
        " native is several times faster and equal within rounding; auto uses native if a C"
        " compiler is available.",
        choices=KERNELS,
        preset=False,
        decides=False,
    )
    optimizer: str = option("sgd", "Optimisation algorithm.", choices=OPTIMIZERS)
    momentum: float = option(0.0, "SGD momentum.", min=0, max=1, max_open=True)
    nesterov: bool = option(False, "Use Nesterov momentum.")
    weight_decay: float = option(
        0.0, "Weight decay; decoupled from the gradient for adamw and muon.", min=0, max=1
    )
    schedule: str = option("constant", "Learning-rate schedule.", choices=SCHEDULES)
    warmup_epochs: float = option(0.0, "Epochs of learning-rate warm-up; may be a fraction.", min=0)
    label_smoothing: float = option(
        0.0,
        "Probability spread evenly over all classes in the training loss.",
        min=0,
        max=1,
        max_open=True,
    )
    clip_norm: float = option(0.0, "Maximum gradient norm; 0 disables clipping.", min=0)
    ema_decay: float = option(
        0.0,
        "Decay per step of the exponential moving average of the weights; 0 disables it.",
        min=0,
        max=1,
        max_open=True,
    )
    augment: tuple[str, ...] = option(
        (),
        "Augmentations of the training images, in order of application, separated by commas:"
        f" {', '.join(AUGMENTATIONS)}.",
        choices=AUGMENTATIONS,
        metavar="NAMES",
    )
    mixup: float = option(
        0.0,
        "Parameter alpha of mixup's Beta distribution (Zhang et al., arXiv:1710.09412); 0 disables"
        " mixup.",
        min=0,
    )
    patience: int = option(
        0,
        "Epochs without a lower validation loss before training stops and the best weights are"
        " restored; 0 disables early stopping.",
        min=0,
    )
    freeze_epochs: int = option(0, "Number of first epochs that train only the last layer.", min=0)
    precision: str = option(
        "float32", "Data type of matrix products and convolutions.", choices=PRECISIONS
    )
    class_weights: str = option(
        "none",
        "Weights of the classes in the training loss: balanced weighs each image by the inverse of"
        " its class's share.",
        choices=CLASS_WEIGHTS,
    )

    def __post_init__(self) -> None:
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise SettingError(f"momentum and nesterov are options of sgd, not of {self.optimizer}")
        if self.nesterov and not self.momentum:
            raise SettingError("nesterov needs a momentum above 0")
        if self.warmup_epochs >= self.epochs:
            raise SettingError(
                f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}"
            )
        if self.schedule == "one-cycle" and not self.warmup_epochs:
            raise SettingError("the one-cycle schedule needs warmup_epochs above 0")

    @property
    def is_plain_sgd(self) -> bool:
        """Whether each step only subtracts lr times the gradient of the mean cross-entropy."""
        settings = (self.epochs, self.batch_size, self.lr, self.seed, self.kernels)
        return self == Recipe(*settings, patience=self.patience)


@dataclass(frozen=True)
class Experiment:
    """The settings of one training run.

    Raises:
        SettingError: two settings contradict each other.
    """

    model: str = option("cnn", "Name of the model.", metavar="MODEL")
    data: str = option(
        FASHION_MNIST.name,
        "Images to train on: fashion-mnist, mnist, kmnist, qmnist, emnist:SPLIT, cifar10, a folder"
        " of pictures with a folder for each class, or a CSV file with columns path and label.",
        metavar="DATA",
        preset=False,
    )
    image_size: int = option(
        0,
        "Height and width of the images in pixels; 0 for those of the data.",
        min=0,
        max=1024,
        preset=False,
        decides=False,
    )
    strict: bool = option(
        False,
        "Refuse a folder with pictures that cannot be read, instead of leaving them out.",
        preset=False,
        decides=False,
    )
    architecture: Architecture = field(default=LAB_ARCHITECTURE)
    val_size: int = option(
        5000,
        "Number of training images held out for validation; 0 is the lab's protocol. Of other data"
        " than Fashion-MNIST the default is a tenth, at most 5000.",
        min=0,
        preset=False,
    )
    # `device_type` decides instead.
    device: str = option(
        "auto",
        "Device to train on; auto uses cuda, else mps, else cpu.",
        choices=DEVICES,
        preset=False,
        decides=False,
    )
    recipe: Recipe = field(default_factory=Recipe)
    # The settings that it sets decide instead.
    preset: str = option(
        "lab",
        "Named group of settings; other options override it. Defaults shown are those of lab.",
        choices=tuple(PRESETS),
        preset=False,
        decides=False,
    )
    tta: bool = option(
        False,
        "Test-time augmentation: also log metrics averaged over each image and its mirror image.",
        decides=False,
    )

    def __post_init__(self) -> None:
        if self.recipe.patience and not self.val_size:
            raise SettingError("patience needs validation data: val_size is 0")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the experiment with these options by name, on top of those of the preset.

        With another model than the preset's, its architecture is left out.

        Raises:
            SettingError: an option is unknown, a value is wrong, or two contradict each other.
        """
        for name in options:
            if name not in OPTIONS:
                meant = meant_by(name)
                hint = f"; did you mean {meant}?" if meant else ""
                raise SettingError(f"unknown option{hint}", name)
        preset = OPTIONS["preset"].parse(options.get("preset", OPTIONS["preset"].default))
        usual = PRESETS[preset]
        if options.get("model", usual.get("model")) != usual.get("model"):
            others = usual.keys() - options_of(Architecture).keys()
            usual = {name: usual[name] for name in others}
        return read(cls, usual | dict(options))

    def with_seeds(self, count: int) -> list[Self]:
        """Return `count` repetitions, with consecutive seeds."""
        first = self.recipe.seed
        return [
            replace(self, recipe=replace(self.recipe, seed=seed))
            for seed in range(first, first + count)
        ]

    @property
    def title(self) -> str:
        """The model, the preset, and the settings that are not its: "cnn lr=0.05 seed=43"."""
        usual = self.from_options({"preset": self.preset, "model": self.model}).to_dict()
        settings = self.to_dict()
        if self.data != FASHION_MNIST.name:
            # Of a path the last part is enough, and val_size is the data's own.
            settings |= {"data": PurePath(self.data).name, "val_size": usual["val_size"]}
        changed = [f"{name}={settings[name]}" for name in settings if settings[name] != usual[name]]
        preset = [] if self.preset == OPTIONS["preset"].default else [f"preset={self.preset}"]
        return " ".join([self.model, *preset, *changed])

    def to_dict(self) -> dict[str, Any]:
        """Return all options by name, as `from_options` takes them."""
        return flatten(self)


@dataclass(frozen=True)
class Conditions:
    """Conditions of a run that are detected and logged, but cannot be set."""

    kernels_used: str = fact()
    device_type: str = fact()
    device_name: str = fact(decides=False, tag=True)
    nproc: int = fact()
    threads: int = fact(decides=False, tag=True)
    cpu_capability: str = fact(decides=False, tag=True)
    split_seed: int = fact()
    train_digest: str = fact()
    image_shape: str = fact(decides=False)
    classes: int = fact(decides=False)
    torch_version: str = fact(tag=True)
    python_version: str = fact(decides=False, tag=True)
    num_parameters: int = fact(decides=False)


def meant_by(name: str) -> str:
    """Return the option that someone means who writes `name`; empty if it is anyone's guess."""
    name = name.replace("-", "_")
    known = {other: option.name for option in OPTIONS.values() for other in option.also_called}
    known |= {option: option for option in OPTIONS}
    close = get_close_matches(name, known, n=1)
    return known[close[0]] if close else ""


OPTIONS = options_of(Experiment)
# What a run's settings lack is younger than the run, and a preset may have got it since.
DEFAULTS = {option.name: option.default for option in OPTIONS.values()}
LOGGED = OPTIONS | options_of(Conditions)

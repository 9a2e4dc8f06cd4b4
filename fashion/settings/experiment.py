"""What a training run is asked for: the network, how to train it, and on what."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """What determines a network, apart from which it is. Its constructor says what each means."""

    hidden_units: int = 10
    blocks: int = 2
    dropout: float = 0.0
    batch_norm: bool = False
    pretrained: str = ""


THE_LABS = Architecture()


OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
SCHEDULES = ("constant", "cosine", "one-cycle")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are the lab's.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step.
        lr: the greatest learning rate.
        seed: of the weights and of the order of the images.
        kernels: what trains the lab's models on a CPU. "torch" gives the lab's bits; "native" the
            same within rounding, several times sooner; "auto" is native where it can be compiled.
        optimizer: one of `OPTIMIZERS`.
        momentum, nesterov: SGD's.
        weight_decay: adamw and muon decouple it from the gradient, the others add it to that.
        schedule: one of `SCHEDULES`: what becomes of the learning rate.
        warmup_epochs: epochs, also parts of one, in which the learning rate rises.
        label_smoothing: probability spread evenly over all classes in the training loss.
        clip_norm: greatest norm of the gradient; 0 does not clip.
        ema_decay: the model is the exponential moving average of the weights, with this decay a
            step; 0 averages nothing.
        patience: epochs without a lower validation loss after which training stops, and the
            weights of the epoch with the lowest are the model's; 0 trains on.
        augment: names of `augment.AUGMENTATIONS`, applied in this order.
        mixup: how much images are mixed, two at a time: the parameter of the Beta distribution of
            their shares (Zhang et al., arXiv:1710.09412); 0 mixes none.
        freeze_epochs: first epochs, in which the last layer alone learns.
        precision: one of `PRECISIONS`: bfloat16 computes products in it, the rest in float32.

    Raises:
        ValueError: two settings contradict each other.
    """

    epochs: int = 3
    batch_size: int = 32
    lr: float = 0.1
    seed: int = 42
    kernels: str = "auto"
    optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    augment: tuple[str, ...] = ()
    mixup: float = 0.0
    patience: int = 0
    freeze_epochs: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.optimizer != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(f"momentum and nesterov are SGD's: {self.optimizer} has its own")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"a warm-up of {self.warmup_epochs:g} epochs leaves none of {self.epochs} to train"
            )
        if self.schedule == "one-cycle" and not self.warmup_epochs:
            raise ValueError("the one-cycle schedule needs warmup_epochs above 0")

    @property
    def is_plain_sgd(self) -> bool:
        """Whether each step takes lr times the gradient of the cross-entropy off the weights."""
        settings = (self.epochs, self.batch_size, self.lr, self.seed, self.kernels)
        return self == Recipe(*settings, patience=self.patience)


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

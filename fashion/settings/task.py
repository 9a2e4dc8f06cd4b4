"""What is classified: classes, image shape, sizes of the splits."""

from fashion.errors import SettingError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
IMAGE_SHAPE = (1, 28, 28)
TRAIN_SIZE = 60_000
TEST_SIZE = 10_000
HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
# The split has a seed of its own, so that runs with different training seeds stay comparable:
# they are all validated on the same images.
SPLIT_SEED = 42


def check_val_size(val_size: int) -> None:
    """Raise SettingError unless a stratified split can hold `val_size` training images out."""
    if val_size and not len(CLASSES) <= val_size <= TRAIN_SIZE - len(CLASSES):
        raise SettingError(
            f"{val_size} is neither 0 nor between {len(CLASSES)} and {TRAIN_SIZE - len(CLASSES)}",
            "val_size",
        )

"""The classification task: classes, image shape, split sizes, name of the registered model."""

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
# The authors' own server, as in torchvision.datasets.FashionMNIST.
DOWNLOADS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MODEL_NAME = "fashion-mnist-cnn"
CHAMPION = "champion"
CHAMPION_URI = f"models:/{MODEL_NAME}@{CHAMPION}"
# The split has its own seed, so that runs with different training seeds stay comparable: all of
# them are validated on the same images.
SPLIT_SEED = 42


def check_val_size(val_size: int) -> None:
    """Raise SettingError unless a stratified split can hold out `val_size` training images."""
    if val_size and not len(CLASSES) <= val_size <= TRAIN_SIZE - len(CLASSES):
        raise SettingError(
            f"{val_size} is neither 0 nor between {len(CLASSES)} and {TRAIN_SIZE - len(CLASSES)}",
            "val_size",
        )

"""The classification task: classes, image shape, name of the registered model."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Task:
    """What a model classifies.

    Attributes:
        name: name of the data, as MLflow's lineage shows it.
        title: the same for people.
        classes: names of the classes, in the order of the logits.
        shape: channels, height and width of an image.
        extract: whether a picture's foreground is cut out and put light on black, as the authors of
            Fashion-MNIST did; otherwise the whole picture is resized.
        mean, std: of each channel over the training images, in [0, 1]; empty if unknown. Models
            take images in [0, 1] all the same.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    extract: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def pixels(self) -> int:
        """Number of values of an image."""
        return prod(self.shape)

    @property
    def size(self) -> str:
        """Channels, height and width as text: 1x28x28."""
        return "x".join(map(str, self.shape))

    @property
    def model_name(self) -> str:
        """Name under which models of the task are registered."""
        return MODEL_NAME if self.name == FASHION_MNIST.name else self.name

    @property
    def champion_uri(self) -> str:
        """MLflow URI of the best registered model."""
        return f"models:/{self.model_name}@{CHAMPION}"


FASHION_MNIST = Task(
    name="fashion-mnist",
    title="Fashion-MNIST",
    classes=(
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
    ),
    shape=(1, 28, 28),
    extract=True,
)
HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
# The authors' own server, as in torchvision.datasets.FashionMNIST.
DOWNLOADS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MODEL_NAME = "fashion-mnist-cnn"
CHAMPION = "champion"
CHAMPION_URI = FASHION_MNIST.champion_uri
# The split has its own seed, so that runs with different training seeds stay comparable: all of
# them are validated on the same images.
SPLIT_SEED = 42

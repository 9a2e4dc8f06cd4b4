"""Augmentation changes each image in its own way, and only in that."""

import pytest
import torch

from fashion.data.dataset import Dataset, to_float
from fashion.models import catalogue
from fashion.settings.experiment import AUGMENTATIONS, Recipe
from fashion.training import augmentation, loop
from fashion.training.augmentation import CHANGES


@pytest.fixture
def images(small: Dataset) -> torch.Tensor:
    return to_float(small.train.images[:400])


def apply(name: str, images: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return augmentation.Augmentation([name], seed)(images)


def test_every_augmentation_that_can_be_asked_for_exists() -> None:
    assert set(AUGMENTATIONS) == set(CHANGES)


def test_half_of_the_images_are_mirrored_and_nothing_else(images: torch.Tensor) -> None:
    changed = apply("flip", images)
    same = (changed == images).flatten(1).all(1)
    mirrored = (changed == images.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_each_image_is_mirrored_in_every_other_epoch(images: torch.Tensor) -> None:
    function = augmentation.Augmentation(["alternate"], seed=1)
    seen = []
    for epoch in (1, 2, 3):
        function.draws.epoch.fill_(epoch)
        seen.append(function(images))
        assert torch.equal(function(images.flip(0)), seen[-1].flip(0))  # in whatever order
    first, second, third = seen
    mirrored = (first != images).flatten(1).any(1)
    assert 150 < mirrored.sum() < 250
    assert torch.equal(first, torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images))
    assert torch.equal(second, first.flip(-1))
    assert torch.equal(third, first)


def test_images_move_by_up_to_two_pixels_each_way(images: torch.Tensor) -> None:
    changed = apply("shift", images)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    found = torch.zeros(5, 5)
    for index, image in enumerate(changed):
        matches = [
            (dy, dx)
            for dy in range(5)
            for dx in range(5)
            if torch.equal(image, padded[index, :, dy : dy + 28, dx : dx + 28])
        ]
        assert matches
        found[matches[0]] += 1
    assert (found > 0).all()


def test_a_rectangle_of_half_of_the_images_is_erased(images: torch.Tensor) -> None:
    images = images * 0.5 - 1  # apart from the noise, which is between 0 and 1
    changed = apply("erase", images)
    different = (changed != images).squeeze(1)
    erased = different.flatten(1).any(1)
    assert 150 < erased.sum() < 250
    for mask in different[erased]:
        rows, columns = mask.any(1).nonzero().squeeze(1), mask.any(0).nonzero().squeeze(1)
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        assert 0.01 < box.numel() / 784 < 0.4
    assert 0 <= changed[different.unsqueeze(1)].min() <= changed[different.unsqueeze(1)].max() < 1


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "alternate"])
def test_the_seed_determines_what_is_drawn(images: torch.Tensor, name: str) -> None:
    before = images.clone()
    assert torch.equal(apply(name, images), apply(name, images))
    assert not torch.equal(apply(name, images), apply(name, images, seed=2))
    function = augmentation.Augmentation([name], 1)
    assert not torch.equal(function(images), function(images))
    assert torch.equal(images, before)
    assert function(images).shape == images.shape


def test_training_sees_the_augmented_images(small: Dataset) -> None:
    def final_loss(**settings: object) -> float:
        model = catalogue.build("baseline", seed=42)
        return list(loop.train(model, small.train, Recipe(**settings)))[-1].loss

    plain, augmented = final_loss(), final_loss(augment=("shift", "erase"))
    assert augmented > plain + 0.05
    assert final_loss(augment=("shift", "erase")) == augmented


def test_training_mirrors_in_one_epoch_what_it_did_not_in_the_one_before(small: Dataset) -> None:
    seen: list[torch.Tensor] = []
    model = catalogue.build("baseline", seed=42)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    recipe = Recipe(epochs=2, batch_size=len(small.train), augment=("alternate",))
    list(loop.train(model, small.train, recipe))
    first, second = ((images[..., :14] - images[..., 14:]).sum().item() for images in seen)
    assert first == pytest.approx(-second, rel=1e-2)


def test_a_process_without_rows_of_a_batch_has_nothing_to_augment() -> None:
    images, targets = torch.zeros(0, 1, 28, 28), torch.zeros(0, dtype=torch.int64)
    augmented = augmentation.Augmentation(AUGMENTATIONS, seed=1)(images)
    mixed, shares = augmentation.make_mixup(0.4, 10)(augmented, targets)
    assert mixed.shape == (0, 1, 28, 28)
    assert shares.shape == (0, 10)

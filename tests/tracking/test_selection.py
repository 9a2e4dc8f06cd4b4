"""Which version becomes champion."""

import pytest

from fashion.errors import RegistryError
from fashion.tracking.evidence import signed
from fashion.tracking.selection import choose
from fashion.tracking.versions import ROLLED_BACK, Version


def version(number: int, accuracy: float, images: int = 5000, **tags: str) -> Version:
    source = f"models:/m-{number}"
    measured = {
        "val_accuracy": str(accuracy),
        "val_loss": str(1 - accuracy),
        "validation_digest": f"digest of {images}",
        "validation_images": str(images),
    }
    return Version(str(number), "", source, signed(measured, source) | tags)


def chosen(
    *versions: Version, champion: Version | None = None, metric: str = "val_accuracy"
) -> str:
    return choose(versions, champion, metric).version.number


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_the_best_version_becomes_the_first_champion(metric: str) -> None:
    assert chosen(version(1, 0.7), version(2, 0.8), version(3, 0.6), metric=metric) == "2"


def test_the_first_champion_was_measured_on_the_most_images() -> None:
    assert chosen(version(1, 0.7), version(2, 0.6), version(3, 0.9, images=10)) == "1"
    assert chosen(version(1, 0.9), version(2, 0.6, images=6000), version(3, 0.8)) == "2"


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_a_tie_goes_to_the_champion_else_to_the_older_version(metric: str) -> None:
    old, new = version(1, 0.8), version(2, 0.8)
    assert chosen(old, new, metric=metric) == "1"
    assert chosen(old, new, champion=old, metric=metric) == "1"
    assert chosen(old, new, champion=new, metric=metric) == "2"


def test_a_better_figure_on_other_images_does_not_replace_the_champion() -> None:
    champion = version(1, 0.7)
    others = version(2, 0.9, images=10), version(3, 0.9, images=6000)
    assert chosen(champion, *others, champion=champion) == "1"
    assert chosen(champion, *others, version(4, 0.8), champion=champion) == "4"


@pytest.mark.parametrize("value", ["high", "nan", "0.9999", ""])
def test_a_value_that_was_changed_by_hand_is_not_compared(value: str) -> None:
    forged, champion = version(1, 0.7, val_accuracy=value), version(2, 0.8)
    found = choose([forged, champion], champion, "val_accuracy")
    assert found.version == champion
    assert "unverified, so not compared: version 1 " in found.reason
    assert choose([forged, champion], None, "val_accuracy").version == champion
    assert choose([forged, champion], forged, "val_accuracy").version == forged


def test_many_unverified_versions_are_counted() -> None:
    forged = [version(number, 0.7, val_accuracy="1") for number in range(1, 9)]
    reason = choose([*forged, version(9, 0.8)], None, "val_accuracy").reason
    assert "version 1, 2, 3, 4, 5 and 3 more " in reason


def test_a_version_that_was_rolled_back_is_never_chosen() -> None:
    bad = version(2, 0.9, **{ROLLED_BACK: "true"})
    assert chosen(version(1, 0.7), bad) == "1"
    # Not even if it is the champion; its successor was measured on the same images.
    others = version(1, 0.7), version(3, 0.8, images=6000)
    assert chosen(*others, bad, champion=bad) == "1"
    assert chosen(bad, champion=bad) == "2"


def test_without_any_measured_version_there_is_no_champion() -> None:
    with pytest.raises(RegistryError, match="no version has a val_accuracy"):
        choose([version(1, 0.7, val_accuracy="1")], None, "val_accuracy")

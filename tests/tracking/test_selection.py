"""Which version becomes champion."""

import json

import pytest
import torch

from fashion.errors import RegistryError
from fashion.settings.gate import DEFAULT_GATE, Gate
from fashion.tracking.contest import CONTEST, CONTEST_IMAGES, between
from fashion.tracking.evidence import VALIDATION_RIGHT, packed, signed
from fashion.tracking.selection import Choice, choose
from fashion.tracking.versions import FORCED, ROLLED_BACK, Version

UNTESTED = Gate(min_p=1)


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
    return choose(versions, champion, metric, UNTESTED).version.number


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
    found = choose([forged, champion], champion, "val_accuracy", UNTESTED)
    assert found.version == champion
    assert "unverified, so not compared: version 1 " in found.reason
    assert choose([forged, champion], None, "val_accuracy", UNTESTED).version == champion
    assert choose([forged, champion], forged, "val_accuracy", UNTESTED).version == forged


def test_many_unverified_versions_are_counted() -> None:
    forged = [version(number, 0.7, val_accuracy="1") for number in range(1, 9)]
    reason = choose([*forged, version(9, 0.8)], None, "val_accuracy", UNTESTED).reason
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
        choose([version(1, 0.7, val_accuracy="1")], None, "val_accuracy", UNTESTED)


def paired(number: int, gained: int, lost: int, images: int = 1000) -> Version:
    """Return a version that gains and loses images compared with `paired(1, 0, 0)`."""
    right = torch.arange(images) < images // 2
    right[images // 2 : images // 2 + gained] = True
    right[:lost] = False
    source = f"models:/m-{number}"
    accuracy = right.double().mean().item()
    measured = {
        "val_accuracy": str(accuracy),
        "val_loss": str(1 - accuracy),
        "validation_digest": f"digest of {images}",
        "validation_images": str(images),
        VALIDATION_RIGHT: packed(right),
    }
    return Version(str(number), "", source, signed(measured, source))


def contested(*others: Version, gate: Gate = DEFAULT_GATE, registered: str | None = None) -> Choice:
    champion = paired(1, 0, 0)
    return choose([champion, *others], champion, "val_accuracy", gate, registered)


# p is 1/32 for 5 to 0, 1/16 for 4 to 0, and 0.0547 for 8 to 2.
@pytest.mark.parametrize(
    ("gained", "lost", "gate", "moves"),
    [
        (5, 0, DEFAULT_GATE, True),
        (4, 0, DEFAULT_GATE, False),
        (8, 2, DEFAULT_GATE, False),
        (0, 5, DEFAULT_GATE, False),
        (5, 0, Gate(min_p=0.03), False),
        (5, 0, Gate(min_p=1 / 32), True),
        (4, 0, Gate(min_p=0.1), True),
        (1, 0, Gate(min_p=1), True),
        (64, 0, Gate(min_gain=0.064), True),
        (64, 0, Gate(min_gain=0.0641), False),
        (63, 0, Gate(min_gain=0.064), False),
    ],
)
def test_the_champion_moves_only_if_the_gain_is_no_noise(
    gained: int, lost: int, gate: Gate, moves: bool
) -> None:
    assert contested(paired(2, gained, lost), gate=gate).version.number == ("2" if moves else "1")


def test_the_best_of_those_that_pass_becomes_champion() -> None:
    # 3 is better than 2, but only 2 is so for certain.
    assert contested(paired(2, 10, 0), paired(3, 100, 85)).version.number == "2"
    assert contested(paired(2, 10, 0), paired(3, 12, 0)).version.number == "3"


def test_why_the_champion_moved_is_in_one_line_and_in_its_tags() -> None:
    choice = contested(paired(2, 9, 1))
    assert choice.reason == (
        "its val_accuracy of 0.5080 beats version 1's 0.5000; 10 images differ (9 gained, 1 lost),"
        " p = 0.011"
    )
    assert choice.evidence == {
        CONTEST: "its val_accuracy is 0.0080 better than version 1's; 10 images differ (9 gained,"
        " 1 lost), p = 0.011: became champion",
        CONTEST_IMAGES: json.dumps({"p": 11 / 1024, "gained": [*range(500, 509)], "lost": [0]}),
    }


def test_without_predictions_of_both_nothing_is_certain() -> None:
    champion, better = version(1, 0.7), version(2, 0.8)
    choice = choose([champion, better], champion, "val_accuracy", DEFAULT_GATE)
    assert choice.version == champion
    assert between(champion, better, "val_accuracy").problem(DEFAULT_GATE).startswith("without")
    assert between(champion, version(2, 0.7), "val_accuracy").problem(UNTESTED) == "not better"
    # Those that were changed by hand do not count, as other tags do not.
    forged = paired(2, 9, 0).with_tags({VALIDATION_RIGHT: packed(torch.ones(1000).bool())})
    assert contested(forged).version.number == "1"


def test_a_forced_version_becomes_champion_even_if_it_is_worse() -> None:
    force = Gate(force=True)
    choice = contested(paired(2, 9, 0), paired(3, 0, 9), gate=force, registered="3")
    assert choice.version.number == "3"
    assert choice.evidence[CONTEST].endswith("p = 1: forced to be champion")
    assert choice.evidence[FORCED] == "3"
    choice = contested(paired(2, 9, 0), paired(3, 0, 9), gate=force, registered="2")
    assert (choice.version.number, choice.evidence[FORCED]) == ("2", "3")
    assert contested(paired(2, 9, 0), gate=force, registered="1").version.number == "1"


def test_a_forced_champion_gives_way_only_to_versions_that_are_newer() -> None:
    champion, older = paired(2, 0, 9).with_tags({FORCED: "3"}), [paired(1, 0, 0), paired(3, 9, 0)]
    choice = choose([*older, champion], champion, "val_accuracy", DEFAULT_GATE)
    assert choice.version == champion
    assert choice.reason.startswith("it was forced, and since then nothing beats its val_accuracy")
    newer = paired(4, 1, 0)
    assert choose([*older, newer], champion, "val_accuracy", DEFAULT_GATE).version == newer
    untagged = champion.with_tags({FORCED: "by me"})
    assert choose(older, untagged, "val_accuracy", DEFAULT_GATE).version.number == "3"


def test_the_changed_images_of_very_different_models_fit_into_a_tag() -> None:
    tags = between(paired(1, 0, 0, 60_000), paired(2, 30_000, 0, 60_000), "val_accuracy").tags("")
    gained = json.loads(tags[CONTEST_IMAGES])["gained"]
    assert gained == [*range(30_000, 31_000), "and 29000 more"]


def test_a_champion_that_cannot_be_compared_gives_way_only_to_force() -> None:
    foreign, better = Version("1", "", "s3://elsewhere", {}), paired(2, 9, 0)
    arguments = [foreign, better], foreign, "val_accuracy"
    assert choose(*arguments, DEFAULT_GATE, "2").version == foreign
    forced = choose(*arguments, Gate(force=True), "2")
    assert forced.version == better
    expected = "forced; it cannot be compared with version 1"
    assert forced.evidence == {CONTEST: expected, FORCED: "2"}
    assert forced.reason.startswith(expected)


def test_what_was_rolled_back_cannot_be_forced() -> None:
    bad = paired(2, 9, 0).with_tags({ROLLED_BACK: "true"})
    assert contested(bad, gate=Gate(force=True), registered="2").version.number == "1"

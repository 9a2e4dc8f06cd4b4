"""Load a folder of pictures, or a table of them, as a task of its own."""

import hashlib
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from fashion.data import contents, decoded, listing
from fashion.data.contents import Content
from fashion.data.dataset import Dataset, Subset, digest_of
from fashion.data.decoded import Decoded
from fashion.data.listing import TEST, TRAIN, VALIDATION, Listing, Picture
from fashion.data.splitting import SplitError, hold_out, unite
from fashion.errors import DataError, printable
from fashion.settings.task import SPLIT_SEED, Task

# Pictures that become the test set where the folder has none: a fifth.
TEST_SHARE = 0.2
# Of images, in pixels, where nobody asks for another size: that of the largest picture within
# these bounds. Networks halve the size up to three times, and need some pixels then.
MIN_SIZE, MAX_SIZE = 8, 64
# How many names a message has.
NAMED = 3
# Name of a task whose folder has none that MLflow takes.
UNNAMED = "pictures"


def load(
    path: str | Path, image_size: int = 0, strict: bool = False, taken: Iterable[str] = ()
) -> Dataset:
    """Load the pictures that `listing.find` finds.

    They are decoded once, into the cache, and mapped from there. Pictures that cannot be read are
    named on stderr and left out, as are links that lead out of the folder.

    A fifth of the pictures becomes the test set where there is none, of each class in proportion.
    It depends on the pictures alone, not on their names or order. Groups and pictures of equal
    content are kept together, there and by `Dataset.split`.

    Args:
        path: a folder, or a CSV file.
        image_size: height and width of the images in pixels; 0 for those of the largest picture,
            but at least 8 and at most 64.
        strict: refuse pictures that cannot be read.
        taken: names that the task must not have.

    Raises:
        DataError: there are no two classes with enough pictures, a picture is under two classes, a
            picture cannot be read and `strict` is true, or the cache cannot be written.
    """
    root = Path(path).resolve()
    shown = printable(str(path))
    found = listing.find(root)
    classes = tuple(sorted(found.classes))
    pictures, known = _readable(found, root)
    broken = dict(found.unusable)
    broken |= {
        picture.name: content.problem
        for picture, content in zip(pictures, known, strict=True)
        if content.problem
    }
    pairs = [(p, c) for p, c in zip(pictures, known, strict=True) if not c.problem]
    _check_counts(pairs, classes, shown, broken)
    shape = _shape([content for _, content in pairs], image_size)
    pixels = decoded.decode({content.sha256: picture.path for picture, content in pairs}, shape)
    broken |= {
        picture.name: pixels.problems[content.sha256]
        for picture, content in pairs
        if content.sha256 in pixels.problems
    }
    pairs = [(p, c) for p, c in pairs if c.sha256 not in pixels.problems]
    _report_broken(broken, len(pairs), strict, shown)
    _report_others(found.others)
    _check_labels(pairs, shown)
    _check_counts(pairs, classes, shown, broken)
    return _dataset(pairs, classes, pixels, shape, root, _name(Path(path), taken))


Pairs = Sequence[tuple[Picture, Content]]


def _readable(found: Listing, root: Path) -> tuple[list[Picture], list[Content]]:
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    index = decoded.folder() / f"{key}.json"
    return found.pictures, contents.examine([each.path for each in found.pictures], index)


def _check_labels(pairs: Pairs, shown: str) -> None:
    """Raise DataError if a picture is under two classes."""
    seen: dict[str, Picture] = {}
    for picture, content in pairs:
        other = seen.setdefault(content.sha256, picture)
        if other.label != picture.label:
            raise DataError(
                f"{shown} holds one picture under two classes: {printable(other.name)}"
                f" ({other.label}) and {printable(picture.name)} ({picture.label})"
            )


def _check_counts(pairs: Pairs, classes: Sequence[str], shown: str, broken: dict[str, str]) -> None:
    """Raise DataError unless there are two classes with enough different pictures in each part."""
    if not pairs:
        reason = f"none of its {len(broken):,} pictures can be read" if broken else "no pictures"
        first = f" ({_named(broken)})" if broken else ""
        raise DataError(f"{shown} has no pictures to learn from: {reason}{first}")
    if len(classes) < 2:
        raise DataError(f"{shown} has one class, {classes[0]}: at least two are needed")
    parts = {picture.part or TRAIN for picture, _ in pairs}
    needed = dict.fromkeys(parts, 1) | {TRAIN: 1 + len({VALIDATION, TEST} - parts)}
    for part, least in sorted(needed.items()):
        different = {(p.label, c.sha256) for p, c in pairs if (p.part or TRAIN) == part}
        counts = Counter(label for label, _ in different)
        few = [f"{label} ({counts[label]})" for label in classes if counts[label] < least]
        if few:
            where = "" if parts == {TRAIN} else f" in {part}"
            unread = f"; {len(broken):,} cannot be read: {_named(broken)}" if broken else ""
            raise DataError(
                f"{shown} has classes with fewer than {least} different pictures{where}:"
                f" {_enumerate(few)}{unread}"
            )


def _report_broken(broken: dict[str, str], good: int, strict: bool, shown: str) -> None:
    if not broken:
        return
    text = f"{len(broken):,} of {len(broken) + good:,} pictures in {shown} cannot be read"
    if strict:
        raise DataError(f"{text}: {_named(broken)}")
    print(f"{text} and are left out: {_named(broken)}", file=sys.stderr)


def _report_others(others: Sequence[str]) -> None:
    if others:
        names = _enumerate([printable(name) for name in others])
        print(f"{len(others):,} passed over, no pictures by their names: {names}", file=sys.stderr)


def _named(broken: dict[str, str]) -> str:
    return _enumerate([f"{printable(name)} ({why})" for name, why in sorted(broken.items())])


def _enumerate(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _shape(known: Sequence[Content], image_size: int) -> tuple[int, int, int]:
    largest = max(max(content.width, content.height) for content in known)
    size = image_size or max(MIN_SIZE, min(largest, MAX_SIZE))
    return (1 if all(content.grey for content in known) else 3, size, size)


def _name(path: Path, taken: Iterable[str]) -> str:
    """Return a name for the data that MLflow takes for a model too."""
    named = path if path.name not in ("", "..") else path.resolve()
    text = named.stem if named.suffix.lower() == ".csv" else named.name
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", ascii_text).strip("-.") or UNNAMED
    return f"{name}-{UNNAMED}" if name in taken else name


def _dataset(
    pairs: Pairs,
    classes: tuple[str, ...],
    pixels: Decoded,
    shape: tuple[int, int, int],
    root: Path,
    name: str,
) -> Dataset:
    index = {label: number for number, label in enumerate(classes)}
    units = unite([c.sha256 for _, c in pairs], [p.group for p, _ in pairs])
    parts = [picture.part or TRAIN for picture, _ in pairs]
    _report_shared(pairs, parts)
    if TEST not in parts:
        parts = _with_test(pairs, parts, units, index, root)
    places: dict[str, list[int]] = {}
    for place, part in enumerate(parts):
        places.setdefault(part, []).append(place)
    rows = np.array([pixels.rows[content.sha256] for _, content in pairs])
    sums = pixels.sums[rows[places[TRAIN]]].sum(axis=0)
    mean, std = _moments(sums, len(places[TRAIN]) * shape[1] * shape[2])
    task = Task(name, printable(root.name) or UNNAMED, classes, shape, mean=mean, std=std)

    def subset(part: str) -> Subset:
        chosen = [pairs[place] for place in places[part]]
        return Subset(
            f"{name}-{part}",
            pixels.pixels,
            torch.tensor([index[picture.label] for picture, _ in chosen]),
            digest_of(
                task.size, *classes, *(f"{content.sha256} {p.label}" for p, content in chosen)
            ),
            task,
            torch.from_numpy(rows[places[part]]),
            printable(str(root)),
        )

    # Also where no pictures are related: `Dataset.split` then holds out some of every class.
    groups = np.unique(units[places[TRAIN]], return_inverse=True)[1]
    return Dataset(
        subset(TRAIN),
        subset(TEST),
        root if root.is_dir() else root.parent,
        subset(VALIDATION) if VALIDATION in places else None,
        torch.from_numpy(groups),
    )


def _moments(sums: np.ndarray, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in [0, 1], from its sums."""
    mean = sums[:, 0] / (255 * count)
    variance = sums[:, 1] / (255**2 * count) - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    return tuple(mean.round(6).tolist()), tuple(std.round(6).tolist())


def _with_test(
    pairs: Pairs, parts: Sequence[str], units: np.ndarray, index: dict[str, int], root: Path
) -> list[str]:
    """Return the parts after a share of the training pictures became the test set."""
    places = [place for place, part in enumerate(parts) if part == TRAIN]
    labels = [index[pairs[place][0].label] for place in places]
    own = np.unique(units[places], return_inverse=True)[1].tolist()
    # By content: what is added later changes the side of few others.
    drawn: dict[int, str] = {}
    for place, unit in zip(places, own, strict=True):
        text = f"{SPLIT_SEED} {pairs[place][1].sha256}"
        number = hashlib.sha256(text.encode()).hexdigest()
        drawn[unit] = min(number, drawn.get(unit, number))
    keep = 1 if VALIDATION in parts else 2
    try:
        held = hold_out(
            labels,
            own,
            max(len(index), round(TEST_SHARE * len(places))),
            keep,
            sorted(drawn, key=drawn.__getitem__),
        )
    except SplitError as error:
        raise DataError(
            f"{printable(str(root))} cannot be split: the pictures of {list(index)[error.label]}"
            f" are in fewer than {keep + 1} groups"
        ) from error
    test = {places[place] for place in held}
    return [TEST if place in test else part for place, part in enumerate(parts)]


def _report_shared(pairs: Pairs, parts: Sequence[str]) -> None:
    """Say which pictures and groups of one part are in another one too."""
    if len(set(parts)) == 1:
        return
    hashes = [content.sha256 for _, content in pairs]
    groups = [picture.group for picture, _ in pairs]
    names = [picture.name for picture, _ in pairs]
    for what, keys, shown in (("pictures", hashes, names), ("groups", groups, groups)):
        where: dict[str, dict[str, str]] = {}
        for key, name, part in zip(keys, shown, parts, strict=True):
            if key:
                where.setdefault(key, {}).setdefault(part, printable(name))
        shared = [each for each in where.values() if len(each) > 1]
        if shared:
            first = " = ".join(f"{name} ({part})" for part, name in shared[0].items())
            print(
                f"{len(shared):,} {what} are in more than one of train, validation and test, which"
                f" makes results look better than they are: {first}",
                file=sys.stderr,
            )

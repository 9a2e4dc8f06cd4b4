"""Find the pictures of a folder or a table, and their classes."""

import csv
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fashion.errors import DataError, printable
from fashion.portable.conversion import IMAGE_FORMATS

# The parts of a data set, and what their folders are called (in any case).
TRAIN, VALIDATION, TEST = "train", "validation", "test"
PARTS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}


class Picture(NamedTuple):
    """A picture that should be learnt from.

    Attributes:
        path: of the file, as text: there may be many.
        name: its path in the folder, or as the table has it.
        label: name of its class.
        part: `TRAIN`, `VALIDATION`, `TEST`, or nothing if the data is not split.
        group: pictures of one group belong on one side of a split; nothing for none.
    """

    path: str
    name: str
    label: str
    part: str = ""
    group: str = ""


class Listing(NamedTuple):
    """What a folder or a table holds.

    Attributes:
        pictures: sorted by name, whatever the order of the file system.
        classes: names of the classes, also of those without pictures.
        unusable: names of links that cannot be followed, and why.
        others: names of files that are no pictures by their suffix, and of links to folders.
    """

    pictures: list[Picture]
    classes: set[str]
    unusable: dict[str, str]
    others: list[str]


def find(path: Path) -> Listing:
    """List the pictures of a folder, or of a CSV file.

    A folder holds one folder for each class; or `train`, `val` and `test`, of which the last two
    may be missing, with such folders. Files are recognised by their suffix, at any depth. Hidden
    files and folders are passed over, as are links to folders.

    A CSV file has the columns path (relative to the file) and label, and may have split (train, val
    or test) and group.

    Raises:
        DataError: it cannot be read, or is neither. The message is one line.
    """
    if path.is_dir():
        return _in_folder(path)
    if path.suffix.lower() == ".csv":
        return _in_table(path)
    shown = printable(str(path))
    try:
        packed = zipfile.is_zipfile(path) or tarfile.is_tarfile(path)
    except OSError as error:
        raise DataError(f"cannot read {shown}: {error.strerror or error}") from error
    if packed:
        raise DataError(f"{shown} is an archive: unpack it, and pass the folder")
    raise DataError(f"{shown} is neither a folder nor a CSV file")


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of files of `IMAGE_FORMATS`, in lower case with the dot."""
    Image.init()
    registered = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in registered if name in IMAGE_FORMATS)


def _in_folder(root: Path) -> Listing:
    found = Listing([], set(), {}, [])
    shown = printable(str(root))
    folders = _subfolders(root, root, found)
    parts = [folder for folder in folders if folder.name.lower() in PARTS]
    if parts and len(parts) == len(folders):
        names = [PARTS[folder.name.lower()] for folder in parts]
        for part in set(names):
            if names.count(part) > 1:
                twice = " and ".join(f.name for f in parts if PARTS[f.name.lower()] == part)
                raise DataError(f"{shown} holds {twice}, which mean the same: rename one")
        if TRAIN not in names:
            raise DataError(f"{shown} holds {parts[0].name}, but no folder train")
        for folder in parts:
            part = PARTS[folder.name.lower()]
            for each in _class_folders(folder, root, found):
                _collect(each, root, part, found)
    else:
        for folder in parts:
            if _subfolders(folder, root, Listing([], set(), {}, [])):
                other = next(each.name for each in folders if each not in parts)
                raise DataError(
                    f"{shown} holds the folder {printable(other)} beside {folder.name}: move it"
                    " away, or have one folder for each class"
                )
        for each in _class_folders(root, root, found):
            _collect(each, root, "", found)
    found.pictures.sort(key=lambda picture: os.fsencode(picture.name))
    found.others.sort()
    return found


def _class_folders(folder: Path, root: Path, found: Listing) -> list[Path]:
    """Return the folders of classes.

    Raises:
        DataError: there is none, or one has a name that cannot be shown.
    """
    folders = _subfolders(folder, root, found)
    shown = printable(str(folder))
    if not folders:
        has_pictures = any(entry.suffix.lower() in suffixes() for entry in folder.iterdir())
        links = len(found.others)
        raise DataError(
            f"{shown} holds pictures, but no folder for each class"
            if has_pictures
            else f"{shown} holds only links to folders, which are passed over"
            if links
            else f"{shown} is empty: it should hold one folder of pictures for each class"
        )
    for each in folders:
        _check_class(each.name, f"the name of the folder {printable(str(each))}")
    return folders


def _check_class(name: str, what: str) -> None:
    if not name.isprintable() or not name.strip():
        raise DataError(f"{what} is not a name of a class in printable UTF-8 characters: rename it")


def _subfolders(folder: Path, root: Path, found: Listing) -> list[Path]:
    """Return the visible folders, sorted; links to folders are passed over."""
    folders = []
    for entry in _scan(folder):
        if not entry.name.startswith(".") and entry.is_dir():
            path = Path(entry.path)
            if entry.is_symlink():
                found.others.append(path.relative_to(root).as_posix())
            else:
                folders.append(path)
    return sorted(folders)


def _scan(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot read the folder {printable(str(folder))}: {reason}") from error


def _collect(folder: Path, root: Path, part: str, found: Listing) -> None:
    """Add the pictures of a class and of the folders in it."""
    found.classes.add(folder.name)
    inside, beginning = os.path.realpath(root), len(str(root).rstrip("/")) + 1
    endings = tuple(suffixes())
    pending = [os.fspath(folder)]
    while pending:
        for entry in _scan(pending.pop()):
            if entry.name.startswith("."):
                continue
            name = entry.path[beginning:]
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif entry.is_symlink() and (reason := _why_not_followed(entry.path, inside)):
                found.unusable[name] = reason
            elif entry.is_dir() or not entry.name.lower().endswith(endings):
                found.others.append(name)
            else:
                found.pictures.append(Picture(entry.path, name, folder.name, part))


def _why_not_followed(link: str, inside: str) -> str:
    """Return why a link is not read; nothing if it leads to something in the folder."""
    try:
        mode = Path(link).stat().st_mode
    except OSError as error:
        return f"a link that leads nowhere ({error.strerror})"
    if stat.S_ISDIR(mode) or Path(os.path.realpath(link)).is_relative_to(inside):
        return ""
    return "a link that leads out of the folder"


def _in_table(path: Path) -> Listing:
    shown = printable(str(path))
    found = Listing([], set(), {}, [])
    try:
        # -sig: spreadsheets put a byte order mark first.
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            columns = rows.fieldnames or ()
            missing = [name for name in ("path", "label") if name not in columns]
            if missing:
                raise DataError(f"{shown} has no column {' and no column '.join(missing)}")
            for row in rows:
                line = f"line {rows.line_num} of {shown}"
                if None in row or None in row.values():
                    raise DataError(f"{line} has not the {len(columns)} columns of the first")
                found.pictures.append(_picture_of(row, path.parent, line))
    except OSError as error:
        raise DataError(f"cannot read {shown}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{shown} is not a CSV file in UTF-8: {error}") from error
    found.classes.update(picture.label for picture in found.pictures)
    if not found.pictures:
        raise DataError(f"{shown} names no pictures")
    parts = {picture.part for picture in found.pictures}
    if parts != {""} and TRAIN not in parts:
        raise DataError(f"{shown} has no picture in the split train")
    found.pictures.sort()
    return found


def _picture_of(row: dict[str, str], folder: Path, line: str) -> Picture:
    label = row["label"].strip()
    _check_class(label, f"the label in {line}")
    if not row["path"]:
        raise DataError(f"{line} has no path")
    part = ""
    if "split" in row:
        part = PARTS.get(row["split"].strip().lower(), "")
        if not part:
            raise DataError(f"the split in {line} is {row['split']!r}, not train, val or test")
    return Picture(str(folder / row["path"]), row["path"], label, part, row.get("group", ""))

"""Labelled pictures: a folder with one folder for each class."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from fashion.data.dataset import Dataset
from fashion.inference import labelled
from fashion.inference.labelled import LabelledError
from fashion.settings.task import FASHION_MNIST


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze(0).numpy()).save(path)


def test_the_folder_of_a_picture_is_its_label(dataset: Dataset, tmp_path: Path) -> None:
    names = ["T-shirt-top", "TROUSER", "ankle_boot", "coat", "Coat.", "tshirt", "T-Shirt/top"]
    for index, name in enumerate(names):
        save(dataset.test.images[index], tmp_path / name / "deeper" / f"{index}.png")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden").mkdir()
    found = labelled.read(tmp_path)
    assert found.others == [tmp_path / "notes.txt"]
    rows = [int(file.stem) for file in found.files]
    assert sorted(rows) == list(range(7))
    assert torch.equal(found.subset.images, dataset.test.images[rows])
    expected = [
        "T-shirt/top",
        "Trouser",
        "Ankle boot",
        "Coat",
        "Coat",
        "T-shirt/top",
        "T-shirt/top",
    ]
    labels = dict(zip(rows, found.subset.labels.tolist(), strict=True))
    assert [FASHION_MNIST.classes[labels[index]] for index in range(7)] == expected
    assert found.subset.name == tmp_path.name


def test_each_class_has_a_folder_name(dataset: Dataset, tmp_path: Path) -> None:
    for name in labelled.folders(FASHION_MNIST):
        save(dataset.test.images[0], tmp_path / name / "1.png")
    assert sorted(labelled.read(tmp_path).subset.labels.tolist()) == list(range(10))


def test_the_digest_tells_other_pictures_and_labels_apart(dataset: Dataset, tmp_path: Path) -> None:
    digests = set()
    for number, (index, name) in enumerate([(0, "Coat"), (1, "Coat"), (0, "Bag"), (0, "coat")]):
        save(dataset.test.images[index], tmp_path / str(number) / name / "1.png")
        digests.add(labelled.read(tmp_path / str(number)).subset.digest)
    assert len(digests) == 3
    assert {len(digest) for digest in digests} == {32}


def test_what_is_no_folder_of_labelled_pictures_is_refused_with_the_reason(
    dataset: Dataset, tmp_path: Path
) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(LabelledError) as error:
            labelled.read(folder)
        return str(error.value)

    assert refused(tmp_path / "missing").endswith("missing: No such file or directory")
    assert "has no folders named after the classes, T-shirt-top, Trouser," in refused(tmp_path)
    save(dataset.test.images[0], tmp_path / "Coat" / "1.png")
    assert refused(tmp_path / "Coat" / "1.png").endswith("1.png: Not a directory")
    (tmp_path / "Hat").mkdir()
    assert "Hat is named after none of the classes, T-shirt-top," in refused(tmp_path)
    (tmp_path / "Hat").rename(tmp_path / "Bag")
    assert "Bag: a folder without images: replace" in refused(tmp_path)
    (tmp_path / "Coat" / "2.png").write_text("no picture")
    assert refused(tmp_path).endswith("(and 1 more): replace or remove it")


def test_names_that_differ_in_punctuation_only_tell_classes_apart(
    dataset: Dataset, tmp_path: Path
) -> None:
    task = replace(FASHION_MNIST, classes=("C", "C++", "+", "a-b"))
    for name in ("C++", "C", "+", "A b"):
        save(dataset.test.images[0], tmp_path / name / "1.png")
    found = labelled.read(tmp_path, task)
    named = {
        file.parent.name: label
        for file, label in zip(found.files, found.subset.labels, strict=True)
    }
    assert named == {"C": 0, "C++": 1, "+": 2, "A b": 3}
    (tmp_path / "c").mkdir()
    with pytest.raises(LabelledError, match="c is named after none of the classes"):
        labelled.read(tmp_path, task)

"""A folder or a table of pictures becomes a data set, or is refused in one line."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fashion.data import folder, listing
from fashion.data.dataset import Dataset, Subset
from fashion.data.sources import load_dataset
from fashion.errors import DataError, FashionError, SettingError
from tests.pictures import noise, write, write_classes, write_digits

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten pictures of each of two classes."""
    return write_classes(tmp_path / "photos", each=10)


def contents(subset: Subset) -> set[bytes]:
    return {image.numpy().tobytes() for image in subset.images}


def refusal(path: Path | str, **settings: object) -> str:
    """Return the message, of one line, with which the data is refused."""
    with pytest.raises(FashionError) as caught:
        load_dataset(data=str(path), **settings)
    assert isinstance(caught.value, DataError | SettingError)
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_one_folder_a_class_gives_classes_images_and_a_test_set(photos: Path) -> None:
    loaded = load_dataset(data=str(photos))
    assert loaded.task.name == "photos"
    assert loaded.task.classes == ("cat", "dog")
    assert loaded.task.shape == (3, 10, 10)
    assert not loaded.task.extract
    assert loaded.train.labels.bincount().tolist() == [8, 8]
    assert loaded.test.labels.bincount().tolist() == [2, 2]
    assert loaded.validation is None
    assert not contents(loaded.train) & contents(loaded.test)


def test_each_image_is_its_picture_with_its_label(photos: Path) -> None:
    loaded = load_dataset(data=str(photos))
    pictures = {
        np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes(): path.parent.name
        for path in photos.glob("*/*")
    }
    for subset in (loaded.train, loaded.test):
        for image, label in zip(subset.images, subset.labels.tolist(), strict=True):
            assert pictures.pop(image.numpy().tobytes()) == loaded.task.classes[label]
    assert not pictures


def test_mean_and_deviation_are_those_of_the_training_images(photos: Path) -> None:
    loaded = load_dataset(data=str(photos))
    values = loaded.train.images.double() / 255
    assert loaded.task.mean == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    expected = values.std(dim=(0, 2, 3), unbiased=False).tolist()
    assert loaded.task.std == pytest.approx(expected, abs=1e-6)


def test_digits_are_grey_and_stay_as_small_as_they_are(tmp_path: Path) -> None:
    loaded = load_dataset(data=str(write_digits(tmp_path / "digits", per_class=10)))
    assert loaded.task.shape == (1, 8, 8)
    assert loaded.task.classes == tuple("0123456789")
    assert len(loaded.train) + len(loaded.test) == 100


@pytest.mark.parametrize(("asked", "size"), [(0, 64), (24, 24), (100, 100)])
def test_large_pictures_are_made_small_unless_a_size_is_asked(
    photos: Path, asked: int, size: int
) -> None:
    write(photos / "cat" / "large.png", noise(1, 300, 200))
    assert load_dataset(data=str(photos), image_size=asked).task.shape == (3, size, size)


def test_one_colour_picture_among_grey_ones_makes_three_channels(tmp_path: Path) -> None:
    for place, name in enumerate(("a", "b")):
        for number in range(4):
            levels = noise(10 * place + number, channels=1)
            write(tmp_path / "p" / name / f"{number}.png", levels)
    assert load_dataset(data=str(tmp_path / "p")).task.channels == 1
    write(tmp_path / "p" / "a" / "colour.png", noise(99))
    assert load_dataset(data=str(tmp_path / "p")).task.channels == 3


def test_the_test_set_depends_on_neither_order_place_nor_names(
    photos: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "other"
    for path in sorted(photos.glob("*/*"), reverse=True):
        target = elsewhere / path.parent.name / f"{9 - int(path.stem)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    one, other = load_dataset(data=str(photos)), load_dataset(data=str(elsewhere))
    assert contents(one.test) == contents(other.test)


def test_the_test_set_never_changes(tmp_path: Path) -> None:
    for number in range(20):  # as BMP, whose bytes are the same with every version of Pillow
        levels = np.full((8, 8), 10 * number)
        write(tmp_path / "p" / "ab"[number % 2] / f"{number}.bmp", levels)
    loaded = load_dataset(data=str(tmp_path / "p"))
    # Another split would make runs of today incomparable with those of before.
    assert loaded.test.images[:, 0, 0, 0].tolist() == [0, 40, 190, 30]
    assert loaded.test.digest == "dc6d16467bfa5cde70efef369c4bbf61"


def test_digests_are_of_contents_labels_and_shape(photos: Path, tmp_path: Path) -> None:
    first = load_dataset(data=str(photos))
    copied = load_dataset(data=str(shutil.copytree(photos, tmp_path / "copy")))
    assert (copied.train.digest, copied.test.digest) == (first.train.digest, first.test.digest)
    assert first.train.digest != first.test.digest
    assert len(first.train.digest) == 32
    larger = load_dataset(data=str(photos), image_size=12)
    assert larger.train.digest != first.train.digest
    (photos / "dog").rename(photos / "wolf")
    assert load_dataset(data=str(photos)).train.digest != first.train.digest


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "VALID", "testing")])
def test_a_split_of_the_folders_own_is_kept(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, each in zip(names, (5, 3, 2), strict=True):
        write_classes(tmp_path / "p" / name, each=each)
    loaded = load_dataset(data=str(tmp_path / "p"))
    assert loaded.validation is not None
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (10, 6, 4)
    training, validation = loaded.split(loaded.usual_val_size)
    assert (training, validation) == (loaded.train, loaded.validation)


def test_without_a_test_folder_training_pictures_are_set_apart(tmp_path: Path) -> None:
    write_classes(tmp_path / "p" / "train", each=5)
    write_classes(tmp_path / "p" / "val", each=2)
    loaded = load_dataset(data=str(tmp_path / "p"))
    assert loaded.validation is not None
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (8, 4, 2)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    loaded = load_dataset(data=str(write_classes(tmp_path / "p", ("bus", "train"))))
    assert loaded.task.classes == ("bus", "train")


def test_a_folder_beside_train_is_an_error_and_no_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "p" / "train")
    write_classes(tmp_path / "p", ("spare",))
    assert "the folder spare beside train" in refusal(tmp_path / "p")


def test_a_table_names_pictures_classes_splits_and_groups(photos: Path, tmp_path: Path) -> None:
    lines = ["\ufeffpath,label,split,group"]
    for number in range(8):
        part = "test" if number > 5 else "Valid" if number == 5 else "train"
        lines += [
            f"photos/{name}/{number}.png,{label},{part},{number // 3}"
            for name, label in (("cat", "Cat, tabby"), ("dog", "Dog/hound"))
        ]
    quoted = "\n".join(lines).replace("Cat, tabby", '"Cat, tabby"')
    (tmp_path / "pets.csv").write_text(quoted, encoding="utf-8")
    loaded = load_dataset(data=str(tmp_path / "pets.csv"))
    assert loaded.task.name == "pets"
    assert loaded.task.classes == ("Cat, tabby", "Dog/hound")
    assert loaded.validation is not None
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (10, 2, 4)
    assert loaded.directory == tmp_path


def test_groups_stay_on_one_side_of_every_split(tmp_path: Path) -> None:
    lines, person = ["path,label,group"], {}
    for number in range(60):
        levels = noise(number)
        path = write(tmp_path / f"{number}.png", levels)
        lines.append(f"{path.name},{'ab'[number % 2]},{number // 6}")
        person[levels.transpose(2, 0, 1).tobytes()] = number // 6
    (tmp_path / "p.csv").write_text("\n".join(lines))
    loaded = load_dataset(data=str(tmp_path / "p.csv"))
    training, validation = loaded.split(6)
    assert validation is not None
    sides = [{person[each] for each in contents(s)} for s in (training, validation, loaded.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 10
    assert [len(training), len(validation), len(loaded.test)] == [42, 6, 12]


def test_copies_of_a_picture_stay_on_one_side(photos: Path) -> None:
    for path in list(photos.glob("*/[0-4].png")):
        for number in range(3):
            shutil.copy(path, path.with_name(f"copy-{path.stem}-{number}.png"))
    loaded = load_dataset(data=str(photos))
    training, validation = loaded.split(8)
    assert validation is not None
    sides = [contents(each) for each in (training, validation, loaded.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 20
    assert len(training) + len(validation) + len(loaded.test) == 50


def test_a_picture_of_two_parts_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path / "p" / "train")
    write_classes(tmp_path / "p" / "test")
    shutil.copy(tmp_path / "p/train/cat/0.png", tmp_path / "p/test/cat/same.png")
    load_dataset(data=str(tmp_path / "p"))
    said = capsys.readouterr().err
    assert "1 pictures are in more than one of train" in said
    assert "test/cat/same.png (test) = train/cat/0.png (train)" in said


def test_a_group_of_two_parts_is_said(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["path,label,split,group"]
    for number in range(8):
        part = ("train", "test")[number % 2]
        lines += [f"photos/{name}/{number}.png,{name},{part},{number}" for name in ("cat", "dog")]
    lines[-1] = lines[-1].replace(",7", ",0")
    (tmp_path / "p.csv").write_text("\n".join(lines))
    load_dataset(data=str(tmp_path / "p.csv"))
    assert "1 groups are in more than one of train" in capsys.readouterr().err


def test_a_picture_under_two_classes_is_refused(photos: Path) -> None:
    shutil.copy(photos / "cat" / "3.png", photos / "dog" / "x.png")
    assert "cat/3.png (cat) and dog/x.png (dog)" in refusal(photos)


def test_broken_pictures_are_named_counted_and_left_out(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photos / "cat" / "0.png").read_bytes()
    (photos / "cat" / "cut.png").write_bytes(whole[:-40])
    (photos / "dog" / "text.jpg").write_text("no picture")
    (photos / "dog" / "nothing.gif").touch()
    for _ in range(2):  # decoded, and from the cache
        loaded = load_dataset(data=str(photos))
        assert len(loaded.train) + len(loaded.test) == 20
        said = capsys.readouterr().err
        assert "3 of 23 pictures" in said
        assert "cat/cut.png (" in said
        assert "dog/text.jpg (not an image in one of the formats" in said
        assert len(said.splitlines()) == 1
    assert "3 of 23 pictures" in refusal(photos, strict=True)


def test_many_broken_pictures_are_not_all_named(photos: Path) -> None:
    for number in range(9):
        (photos / "cat" / f"bad-{number}.png").touch()
    said = refusal(photos, strict=True)
    assert "bad-2.png" in said
    assert "bad-3.png" not in said
    assert said.endswith("and 6 more")


def test_a_class_with_too_few_whole_pictures_says_which_are_broken(photos: Path) -> None:
    for path in photos.glob("dog/[2-9].png"):
        path.write_text("no picture")
    message = refusal(photos)
    assert "fewer than 3 different pictures: dog (2); 8 cannot be read: dog/2.png (" in message


def test_other_files_are_passed_over_and_said(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cat" / "IMG.heic").touch()
    (photos / "cat" / ".hidden.png").touch()
    (photos / ".git").mkdir()
    (photos / "README.txt").touch()
    load_dataset(data=str(photos))
    assert capsys.readouterr().err == ("1 passed over, no pictures by their names: cat/IMG.heic\n")


def test_a_link_to_a_picture_inside_is_that_picture(photos: Path) -> None:
    (photos / "cat" / "link.png").symlink_to(photos / "cat" / "1.png")
    loaded = load_dataset(data=str(photos), strict=True)
    assert len(loaded.train) + len(loaded.test) == 21


def test_links_that_lead_out_or_nowhere_or_in_circles_are_left_out(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = write(tmp_path / "outside.png", noise(1))
    (photos / "cat" / "out.png").symlink_to(outside)
    (photos / "cat" / "gone.png").symlink_to("nothing")
    (photos / "cat" / "ring.png").symlink_to("ring.png")
    (photos / "cat" / "up").symlink_to(photos)
    loaded = load_dataset(data=str(photos))
    assert len(loaded.train) + len(loaded.test) == 20
    said = capsys.readouterr().err
    assert "3 of 23 pictures" in said
    assert "cat/out.png (a link that leads out of the folder)" in said
    assert "cat/ring.png (a link that leads nowhere (Too many levels of symbolic links))" in said
    assert "1 passed over" in said


def test_the_folder_itself_may_be_a_link(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    assert load_dataset(data=str(tmp_path / "link")).task.name == "link"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Café photos", "Cafe-photos"),
        ("a:b", "a-b"),
        ("写真", "pictures"),
        ("mnist", "mnist-pictures"),
        ("emnist-letters", "emnist-letters-pictures"),
        ("fashion-mnist-cnn", "fashion-mnist-cnn-pictures"),
        ("-x.", "x"),
    ],
)
def test_the_name_is_one_that_mlflow_takes(photos: Path, name: str, expected: str) -> None:
    renamed = photos.rename(photos.with_name(name))
    assert load_dataset(data=str(renamed)).task.name == expected


def test_the_working_folder_has_its_own_name(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos / "cat")
    assert load_dataset(data="..").task.name == "photos"
    monkeypatch.chdir(photos)
    assert load_dataset(data=".").task.name == "photos"


def test_names_that_are_not_utf8_are_read_and_shown_escaped(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = os.fsdecode(b"caf\xe9")
    (photos / "cat" / "0.png").rename(photos / "cat" / f"{bad}.png")
    (photos / "cat" / f"{bad}\n2.png").touch()
    loaded = load_dataset(data=str(photos))
    assert len(loaded.train) + len(loaded.test) == 20
    assert r"cat/caf\udce9\n2.png (" in capsys.readouterr().err
    (photos / "cat").rename(photos / bad)
    assert r"caf\udce9 is not a name of a class" in refusal(photos)


def _empty(photos: Path) -> None:
    shutil.rmtree(photos)
    photos.mkdir()


def _flat(photos: Path) -> None:
    _empty(photos)
    write(photos / "1.png", noise(1))


def _one_class(photos: Path) -> None:
    shutil.rmtree(photos / "dog")


def _few(photos: Path) -> None:
    for path in photos.glob("dog/[2-9].png"):
        path.unlink()


def _copies(photos: Path) -> None:
    for path in photos.glob("dog/[2-9].png"):
        shutil.copy(photos / "dog" / "1.png", path)


def _empty_class(photos: Path) -> None:
    for path in photos.glob("dog/*"):
        path.unlink()


def _all_broken(photos: Path) -> None:
    for path in photos.glob("*/*"):
        path.write_bytes(path.read_bytes()[:50])


def _all_cut(photos: Path) -> None:
    for path in photos.glob("*/*"):
        path.write_bytes(path.read_bytes()[:-40])


def _no_train(photos: Path) -> None:
    for name in ("val", "test"):
        shutil.copytree(photos, photos / name, ignore=shutil.ignore_patterns("val", "test"))
    shutil.rmtree(photos / "cat")
    shutil.rmtree(photos / "dog")


def _class_only_in_test(photos: Path) -> None:
    for name in ("cat", "dog"):
        shutil.move(photos / name, photos / "train" / name)
    write_classes(photos / "test", ("cat", "cow", "dog"))


def _twice(photos: Path) -> None:
    for name in ("cat", "dog"):
        shutil.move(photos / name, photos / "train" / name)
    for name in ("val", "valid"):
        write_classes(photos / name)


def _links_only(photos: Path) -> None:
    photos.rename(photos.with_name("real"))
    photos.mkdir()
    for name in ("cat", "dog"):
        (photos / name).symlink_to(photos.with_name("real") / name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_empty, "is empty: it should hold one folder of pictures for each class"),
        (_flat, "holds pictures, but no folder for each class"),
        (_one_class, "has one class, cat"),
        (_few, r"fewer than 3 different pictures: dog \(2\)"),
        (_copies, r"fewer than 3 different pictures: dog \(2\)"),
        (_empty_class, r"fewer than 3 different pictures: dog \(0\)"),
        (_all_broken, "none of its 20 pictures can be read"),
        (_all_cut, "none of its 20 pictures can be read"),
        (_no_train, "but no folder train"),
        (_class_only_in_test, r"fewer than 2 different pictures in train: cow \(0\)"),
        (_twice, "holds val and valid, which mean the same"),
        (_links_only, "only links to folders"),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_refused(photos: Path, spoil, message: str) -> None:
    spoil(photos)
    with pytest.raises(DataError, match=message):
        load_dataset(data=str(photos))
    refusal(photos)


def test_a_folder_that_cannot_be_listed_is_named(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def deny(path: Path):
        if Path(path).name == "dog":  # root may list any folder
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(listing.os, "scandir", deny)
    assert f"cannot read the folder {photos}/dog: Permission denied" in refusal(photos)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column path and no column label"),
        (b"path,class\na.png,x\n", "has no column label"),
        (b"path,label\n", "names no pictures"),
        (b"path,label\na.png\n", "line 2 .* has not the 2 columns"),
        (b"path,label\na.png,x,y\n", "line 2 .* has not the 2 columns"),
        (b"path,label\na.png, \n", "the label in line 2 .* is not a name"),
        (b"path,label\n,x\n", "line 2 .* has no path"),
        (b"path,label,split\na.png,x,dev2\n", "the split in line 2 .* is 'dev2'"),
        (b"path,label,split\na.png,x,test\n", "no picture in the split train"),
        (b"path,label\ncaf\xe9.png,x\n", "not a CSV file in UTF-8"),
        (b'path,label\n"a.png,x\n', "not a CSV file in UTF-8"),
        (b"path,label\na.png,x\n", r"none of its 1 pictures can be read"),
        (b"path,label\n\0.png,x\n", r"none of its 1 pictures can be read"),
    ],
)
def test_a_table_with_mistakes_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_dataset(data=str(tmp_path / "p.csv"))
    refusal(tmp_path / "p.csv")


def test_an_archive_and_another_file_are_refused(photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(photos / "cat" / "0.png")
    assert "is an archive: unpack it" in refusal(tmp_path / "photos.zip")
    assert "neither a folder nor a CSV file" in refusal(photos / "cat" / "0.png")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("minst", "did you mean mnist?"),
        ("emnist:leters", "did you mean emnist:letters?"),
        ("emnist", "did you mean emnist:"),
        ("nothing", "sets by name are fashion-mnist, mnist"),
        ("no/such/folder", "there is no folder no/such/folder"),
        ("~nobody-of-that-name/x", "begins with a user"),
        ("a\0b", "is not the path of a folder"),
        ("", "is not the path of a folder"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_data_that_does_not_exist_is_refused(data: str, message: str) -> None:
    with pytest.raises(FashionError) as caught:
        load_dataset(data=data)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_picture_of_fifty_million_pixels_is_read_at_a_part_of_its_size(
    photos: Path, tmp_path: Path
) -> None:
    Image.new("L", (8_192, 6_200), 90).save(photos / "cat" / "telephone.jpg")
    Image.new("1", (8_192, 6_200)).save(photos / "dog" / "too-large.png")
    message = refusal(photos, strict=True)
    assert "1 of 22 pictures" in message
    assert "too-large.png (8192x6200 pixels exceed the limit" in message
    loaded = load_dataset(data=str(photos), image_size=8)
    assert loaded.train.task.shape == (3, 8, 8)


def test_only_validation_images_of_its_own_are_used(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        write_classes(tmp_path / "p" / name)
    with pytest.raises(SettingError, match="has 8 validation images of its own"):
        load_dataset(data=str(tmp_path / "p")).split(5)


def _dataset_in_one_group(train: Subset) -> Dataset:
    return Dataset(train, train, Path(), groups=(train.labels > 0).long())


def test_a_class_in_one_group_cannot_be_held_out(photos: Path) -> None:
    loaded = load_dataset(data=str(photos))
    with pytest.raises(SettingError, match="all training images of cat are in one group"):
        _dataset_in_one_group(loaded.train).split(4)


def test_a_rare_class_is_in_every_part(tmp_path: Path) -> None:
    write_classes(tmp_path / "p", ("common",), each=60)
    for number in range(3):
        write(tmp_path / "p" / "rare" / f"{number}.png", noise(number))
    loaded = load_dataset(data=str(tmp_path / "p"))
    training, validation = loaded.split(loaded.usual_val_size)
    assert validation is not None
    for subset in (training, validation, loaded.test):
        assert subset.labels.bincount()[1] == 1


def test_images_are_taken_from_the_map_by_any_way(photos: Path) -> None:
    train = load_dataset(data=str(photos)).train
    assert train.pixels.shape[0] == 20
    every = torch.arange(len(train))
    assert torch.equal(train.take(every), train.images)
    assert torch.equal(torch.cat(list(train.batches(3))), train.images)


def test_folder_load_is_what_a_path_means(photos: Path) -> None:
    assert folder.load(photos).train.digest == load_dataset(data=str(photos)).train.digest

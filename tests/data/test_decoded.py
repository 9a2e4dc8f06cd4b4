"""Pictures are decoded once, into a cache that is whole, shared and bounded."""

import gc
import json
import multiprocessing
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock

from fashion.data import contents, decoded, parallel
from fashion.data.sources import load_dataset
from fashion.errors import DataError, SettingError
from fashion.files import INCOMING
from fashion.portable import conversion
from tests.pictures import noise, write, write_classes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "photos")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files that were written just now count as unchanged."""
    monkeypatch.setattr(contents, "SETTLED_NS", 0)


def maps(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What has been decoded."""
    done: list[bytes] = []
    fit = conversion.fit
    monkeypatch.setattr(
        conversion, "fit", lambda source, shape: (done.append(source), fit(source, shape))[1]
    )
    return done


def test_a_second_run_decodes_nothing(photos: Path, cache: Path, fitted: list[bytes]) -> None:
    first = load_dataset(data=str(photos))
    assert len(fitted) == 8
    second = load_dataset(data=str(photos))
    assert len(fitted) == 8
    assert second.train.images.equal(first.train.images)
    assert second.task == first.task


def test_neither_does_one_after_pictures_were_renamed(
    photos: Path, cache: Path, fitted: list[bytes]
) -> None:
    load_dataset(data=str(photos))
    (photos / "cat" / "0.png").rename(photos / "cat" / "z.png")
    shutil.copy(photos / "cat" / "1.png", photos / "cat" / "copy.png")
    load_dataset(data=str(photos))
    assert len(fitted) == 8


def test_another_size_is_another_map(photos: Path, cache: Path) -> None:
    load_dataset(data=str(photos))
    load_dataset(data=str(photos), image_size=9)
    assert len(maps(cache)) == 2


def test_what_is_unchanged_is_not_read_again(
    photos: Path, cache: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    examine = contents._examine
    monkeypatch.setattr(contents, "_examine", lambda path: (read.append(path), examine(path))[1])
    first = load_dataset(data=str(photos))
    assert len(read) == 8
    load_dataset(data=str(photos))
    assert len(read) == 8
    write(photos / "dog" / "2.png", noise(77))
    changed = load_dataset(data=str(photos))
    assert read[8:] == [str(photos / "dog" / "2.png")]
    assert {changed.train.digest, changed.test.digest} != {first.train.digest, first.test.digest}


def test_a_picture_changed_within_the_resolution_of_time_is_noticed(
    photos: Path, cache: Path
) -> None:
    path = photos / "dog" / "2.png"
    before = path.stat()
    first = load_dataset(data=str(photos))
    content = bytearray(path.read_bytes())
    path.write_bytes(content + b" ")
    path.write_bytes(content[:-1] + b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = load_dataset(data=str(photos))
    assert {first.train.digest, first.test.digest} != {second.train.digest, second.test.digest}


def test_what_has_just_been_written_is_not_trusted_to_be_unchanged(
    photos: Path, cache: Path
) -> None:
    for path in (photos / "cat").iterdir():
        os.utime(path, (1e9, 1e9))  # the time of the change of its entry stays
    load_dataset(data=str(photos))
    (index,) = cache.glob("*.json")
    assert json.loads(index.read_text())["files"] == {}


@pytest.mark.parametrize("limit", [contents.LARGE_BYTES, 0])
def test_a_picture_that_changes_while_it_is_read_is_not_kept(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(contents, "LARGE_BYTES", limit)
    examine = contents.examine

    def change(*arguments: object) -> list[contents.Content]:
        found = examine(*arguments)
        write(photos / "dog" / "2.png", noise(5))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(contents, "examine", change)
        with pytest.raises(DataError, match=r"dog/2\.png has changed while it was read"):
            load_dataset(data=str(photos))
    assert maps(cache) == []
    assert len(load_dataset(data=str(photos)).train) == 6


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"\xff", b'{"version": 1, "files": 2}'])
def test_a_damaged_index_is_made_anew(
    photos: Path, cache: Path, settled: None, content: bytes
) -> None:
    first = load_dataset(data=str(photos))
    (index,) = cache.glob("*.json")
    index.write_bytes(content)
    assert load_dataset(data=str(photos)).train.digest == first.train.digest
    assert len(json.loads(index.read_text())["files"]) == 8


def test_pixels_are_mapped_and_not_in_memory(photos: Path, cache: Path) -> None:
    loaded = load_dataset(data=str(photos))
    (entry,) = maps(cache)
    assert str(entry / decoded.PIXELS) in Path("/proc/self/maps").read_text()
    assert loaded.train.pixels.data_ptr() == loaded.test.pixels.data_ptr()


def test_several_processes_decode_what_one_does(photos: Path, cache: Path, monkeypatch) -> None:
    alone = load_dataset(data=str(photos)).train
    decoded.prune()
    for path in maps(cache):
        shutil.rmtree(path)
    monkeypatch.setattr(parallel, "FEW", 0)
    monkeypatch.setattr(decoded, "CHUNK", 3)
    monkeypatch.setattr(contents, "CHUNK", 1)
    (photos / "cat" / "x.png").write_bytes((photos / "cat" / "1.png").read_bytes()[:-30])
    together = load_dataset(data=str(photos)).train
    assert together.digest == alone.digest
    assert together.images.equal(alone.images)


def _die(paths: list[Path]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "FEW", 0)
    with pytest.raises(DataError, match="was killed: the machine may lack memory"):
        list(parallel.in_chunks(_die, range(4), 2, "reading"))


def _wait(paths: list[int], pipe: int) -> None:
    os.write(pipe, f"{os.getpid()}\n".encode())
    signal.pause()


def _work(pipe: int) -> None:
    parallel.FEW = 0
    list(parallel.in_chunks(partial(_wait, pipe=pipe), range(1), 1, "reading"))


def test_processes_end_with_a_killed_parent() -> None:
    reading, writing = os.pipe()
    parent = multiprocessing.get_context("fork").Process(target=_work, args=(writing,))
    parent.start()
    os.close(writing)
    with os.fdopen(reading) as pipe:
        worker = psutil.Process(int(pipe.readline()))
        parent.kill()
        parent.join()
        _, alive = psutil.wait_procs([worker], timeout=600)
    assert not alive


def _load(photos: Path, barrier, results) -> None:
    barrier.wait()
    results.put(load_dataset(data=str(photos)).train.images.sum().item())


def test_two_processes_at_once_decode_once(photos: Path, cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=_load, args=(photos, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = {results.get() for _ in processes}
    for process in processes:
        process.join()
    assert sums == {load_dataset(data=str(photos)).train.images.sum().item()}
    assert len(maps(cache)) == 1


def test_who_waits_for_another_process_is_told(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoded, "PATIENCE", 0)
    load_dataset(data=str(photos))
    assert capsys.readouterr().err == ""
    held = [FileLock(path) for path in cache.glob("*.lock")]
    for lock in held:
        lock.acquire()
    said: list[str] = []

    def say(text: str, **_: object) -> None:
        said.append(text)
        for lock in held:
            lock.release()

    monkeypatch.setattr(decoded, "print", say, raising=False)
    load_dataset(data=str(photos))
    assert said == ["Waiting for another process that decodes pictures"]


def test_nothing_half_written_is_left_or_used(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoded, "_sums", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_dataset(data=str(photos))
    assert maps(cache) == []
    assert len(load_dataset(data=str(photos)).train) == 6


def test_what_a_killed_process_left_is_removed(photos: Path, cache: Path) -> None:
    load_dataset(data=str(photos))
    gc.collect()
    (entry,) = maps(cache)
    left = cache / f"{INCOMING}{entry.name}-abc"
    entry.rename(left)
    load_dataset(data=str(photos))
    assert maps(cache) == [entry]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "")])
def test_a_cache_that_cannot_be_written_is_an_error(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(decoded.os, "fsync", fail)
    with pytest.raises(DataError, match=r"cannot keep decoded pictures in .*XDG_CACHE_HOME"):
        load_dataset(data=str(photos))
    assert maps(cache) == []


def test_a_disk_that_is_too_small_is_said_before_decoding(
    photos: Path, cache: Path, fitted: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(photos)._replace(free=2_000)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"8 pictures of 10x10 pixels take 0\.0 GB"):
        load_dataset(data=str(photos))
    assert not fitted


@pytest.fixture
def three(tmp_path: Path, cache: Path) -> list[Path]:
    """Three maps, not in use, the oldest first."""
    entries: list[Path] = []
    for number in range(3):
        load_dataset(data=str(write_classes(tmp_path / f"p{number}")))
        entries += [path for path in maps(cache) if path not in entries]
    gc.collect()
    for number, path in enumerate(entries):
        os.utime(path, (1e9 + number, 1e9 + number))
    return entries


def test_the_cache_is_bounded_and_what_is_used_least_goes_first(
    three: list[Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_dataset(data=str(tmp_path / "p0"))  # used again
    gc.collect()
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    monkeypatch.setenv("FASHION_CACHE_GB", str((size - 1) / 1e9))
    load_dataset(data=str(tmp_path / "p2"))
    assert maps(cache) == sorted([three[0], three[2]])


def test_pruning_leaves_what_is_in_use(three: list[Path], tmp_path: Path, cache: Path) -> None:
    used = load_dataset(data=str(tmp_path / "p1")).train.images
    subset = load_dataset(data=str(tmp_path / "p1")).train
    pruned = decoded.prune()
    assert maps(cache) == [three[1]]
    assert pruned.left >= 2_400
    assert pruned.removed >= 4_800
    assert subset.images.equal(used)
    del subset
    gc.collect()
    assert decoded.prune().left == 0
    assert maps(cache) == []


def test_pruning_leaves_what_is_being_decoded(cache: Path) -> None:
    cache.mkdir(parents=True)
    incoming = cache / f"{INCOMING}{'0' * 32}-x"
    (incoming / "new").mkdir(parents=True)
    (incoming / "new" / decoded.PIXELS).write_bytes(b"1234")
    with FileLock(decoded._lock(cache / ("0" * 32))):
        assert decoded.prune() == (4, 0)
    assert decoded.prune() == (0, 4)


def test_pruning_a_cache_that_is_not_there_does_nothing(cache: Path) -> None:
    assert decoded.prune() == (0, 0)


@pytest.mark.parametrize("text", ["many", "-1", "nan", "inf"])
def test_a_wrong_limit_is_refused(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("FASHION_CACHE_GB", text)
    with pytest.raises(SettingError, match=f"FASHION_CACHE_GB: '{text}' is not a number"):
        load_dataset(data=str(photos))


def test_a_fifo_and_a_huge_file_are_not_read(
    photos: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(photos / "cat" / "pipe.png")
    with (photos / "dog" / "huge.png").open("wb") as file:
        file.truncate(contents.MAX_BYTES + 1)
    load_dataset(data=str(photos))
    said = capsys.readouterr().err
    assert "cat/pipe.png (not a regular file)" in said
    assert "dog/huge.png (more than 1024 MiB)" in said


def test_sums_are_of_each_channel() -> None:
    pixels = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    sums = decoded._sums(pixels)
    assert sums[1, 2].tolist() == [
        int(pixels[1, 2].sum()),
        sum(int(p) ** 2 for p in pixels[1, 2].flat),
    ]

"""Cache of prepared pictures: prepared once, again after a change, and never believed in part."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from experiments.data import PictureOptions, load, load_rows
from experiments.data.pictures import cache, prepare, source
from experiments.torture.accidents import no_file_above
from tests.files import ROOT
from tests.splits import whole


@pytest.fixture(autouse=True)
def all_are_many(monkeypatch):
    """Cache folders of every size."""
    monkeypatch.setattr(source, "FEW", 0)


@pytest.fixture
def decodings(monkeypatch):
    """List of the pictures that are decoded."""
    decoded, decode = [], prepare.decode_as_shown

    def counting(path, channels, size):
        decoded.append(path.name)
        return decode(path, channels, size)

    monkeypatch.setattr(prepare, "decode_as_shown", counting)
    return decoded


@pytest.fixture
def pictures(tmp_path):
    for number in range(30):
        path = tmp_path / "pictures" / f"{'ab'[number % 2]}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number, 0, 9)).save(path)
    return tmp_path / "pictures"


def cut_short(path):
    """Leave a picture with a right header and half of its pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-40])


def options(tmp_path, **more):
    return PictureOptions(cache=tmp_path / "cache", **more)


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_pictures_are_prepared_once_and_stay_on_disk(tmp_path, pictures, decodings):
    memory = load(f"folder:{pictures}")
    decodings.clear()
    first = load(f"folder:{pictures}", pictures=options(tmp_path))
    assert len(decodings) == 30
    second = load(f"folder:{pictures}", pictures=options(tmp_path))
    assert len(decodings) == 30
    assert first.about == second.about == memory.about
    for split in ("train", "validation", "test"):
        for dataset in (first, second):
            assert isinstance(getattr(dataset, split), np.memmap)
            np.testing.assert_array_equal(getattr(dataset, split), getattr(memory, split))
            np.testing.assert_array_equal(dataset.labels[split], memory.labels[split])
            np.testing.assert_array_equal(dataset.files[split], memory.files[split])
    assert [name.rpartition(".")[2] for name in names(tmp_path)] == ["json", "npy"]
    assert json.loads((tmp_path / "cache" / names(tmp_path)[0]).read_text())["shape"] == [
        *(30, 4, 6, 3)
    ]


def test_rows_of_several_parts_are_one_array_on_disk(tmp_path, pictures):
    (pictures / "a").rename(pictures / "train")
    (pictures / "b").rename(pictures / "test")
    rows = load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert isinstance(rows.examples, np.memmap)
    np.testing.assert_array_equal(rows.examples, load_rows(f"folder:{pictures}").examples)
    test = load_rows(f"folder:{pictures}", "test", pictures=options(tmp_path))
    np.testing.assert_array_equal(test.examples, rows.examples[rows.parts == "test"])


@pytest.mark.parametrize("change", ["content", "time", "more", "fewer", "name"])
def test_changed_folder_is_prepared_again_and_says_so(tmp_path, pictures, change):
    before = load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert "prepared again" not in before.about
    path = pictures / "a" / "00.png"
    if change == "content":
        Image.new("RGB", (6, 4), (200, 1, 2)).save(path)
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "more":
        shutil.copy(path, pictures / "a" / "001.png")
    elif change == "fewer":
        path.unlink()
    else:
        path.rename(pictures / "b" / "00.png")
    after = load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert "prepared again, as the folder has changed since it was prepared" in after.about
    expected = load_rows(f"folder:{pictures}")
    np.testing.assert_array_equal(after.examples, expected.examples)
    assert after.files.tolist() == expected.files.tolist()
    assert len(before.examples) == 30  # its file is gone, but stays mapped
    assert before.examples[0, 0, 0].tolist() == [0, 0, 9]
    assert len(names(tmp_path)) == 2
    assert "prepared again" not in load_rows(
        f"folder:{pictures}", pictures=options(tmp_path)
    ).about  # fmt: skip


def test_each_way_to_prepare_has_its_own_files(tmp_path, pictures, monkeypatch):
    ways = [{}, {"resize": (2, 2)}, {"resize": (2, 3)}, {"channels": 1}, {"skip_unreadable": True}]
    for way in ways:
        rows = load_rows(f"folder:{pictures}", pictures=options(tmp_path, **way))
        expected = load_rows(f"folder:{pictures}", pictures=PictureOptions(**way))
        np.testing.assert_array_equal(rows.examples, expected.examples)
        assert "prepared again" not in rows.about
    load(f"folder:{pictures}", pictures=options(tmp_path))
    assert len(names(tmp_path)) == 2 * (len(ways) + 1)
    monkeypatch.setattr(cache, "pillow_version", "99")
    rows = load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert len(names(tmp_path)) == 2 * (len(ways) + 1)


def test_moved_folder_is_not_prepared_again(tmp_path, pictures, decodings):
    load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    pictures.rename(tmp_path / "moved")
    rows = load_rows(f"folder:{tmp_path}/moved", pictures=options(tmp_path))
    assert len(decodings) == 30
    assert rows.files[1] == "a/02.png"


@pytest.mark.parametrize(
    "damage",
    [
        lambda npy, about: npy.unlink(),
        lambda npy, about: npy.write_bytes(npy.read_bytes()[:-1]),
        lambda npy, about: npy.write_bytes(b""),
        lambda npy, about: np.save(npy, np.zeros((30, 4, 6, 1), np.uint8)),
        lambda npy, about: np.save(npy, np.zeros((30, 4, 6, 3), np.float32)),
        lambda npy, about: np.save(npy, np.array([{}], object)),
        lambda npy, about: about.unlink(),
        lambda npy, about: about.write_text("{"),
        lambda npy, about: about.write_text("[]"),
        lambda npy, about: about.write_text("{}"),
        lambda npy, about: about.write_text('{"shape": [30, 4, 6, 3], "unreadable": 3}'),
        lambda npy, about: about.write_text(
            about.read_text().replace('"unreadable": {}', '"unreadable": {"x": "y"}')
        ),
    ],
)
def test_damaged_files_are_replaced(tmp_path, pictures, decodings, damage):
    load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    about, npy = ((tmp_path / "cache" / name) for name in names(tmp_path))
    damage(npy, about)
    rows = load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert len(decodings) == 60
    np.testing.assert_array_equal(rows.examples[:, 0, 0, 0], [*range(0, 30, 2), *range(1, 30, 2)])
    load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert len(decodings) == 60


def test_skipped_pictures_are_remembered(tmp_path, pictures, decodings):
    (pictures / "a" / "04.png").write_bytes(b"no picture")
    cut_short(pictures / "b" / "05.png")
    skip = options(tmp_path, skip_unreadable=True)
    first = load_rows(f"folder:{pictures}", pictures=skip)
    decodings.clear()
    second = load_rows(f"folder:{pictures}", pictures=skip)
    assert not decodings
    assert first.about == second.about
    assert "2 unreadable pictures skipped: a/04.png, b/05.png" in second.about
    assert len(second.examples) == len(second.files) == 28
    assert not {"a/04.png", "b/05.png"} & set(second.files)
    np.testing.assert_array_equal(
        second.examples[:, 0, 0, 0], [int(name[2:4]) for name in second.files]
    )
    with pytest.raises(ValueError, match="2 of 30 are not"):
        load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("broken", [True, False])
def test_failed_preparation_leaves_nothing(tmp_path, pictures, broken):
    if broken:
        cut_short(pictures / "b" / "05.png")
        with pytest.raises(ValueError, match="1 of 30 are not"):
            load_rows(f"folder:{pictures}", pictures=options(tmp_path / "deep" / "er"))
    else:
        message = r"er/cache must have room for the prepared pictures, 1 MB; .*: File too large. Fr"
        with no_file_above(1000), pytest.raises(ValueError, match=message):
            load_rows(f"folder:{pictures}", pictures=options(tmp_path / "deep" / "er"))
    assert not (tmp_path / "deep").exists()
    (tmp_path / "cache").mkdir()
    with no_file_above(1000), pytest.raises(ValueError, match=r"must have room|are not"):
        load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert names(tmp_path) == []


def test_full_disk_is_noticed_before_pictures_are_decoded(tmp_path, pictures, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"writing there gave: No space left on device. Free some"):
        load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert not (tmp_path / "cache").exists()


def test_pictures_stay_in_memory_where_no_file_can_be_written(tmp_path, pictures):
    (tmp_path / "cache").write_text("a file")
    rows = load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert len(rows.examples) == 30
    assert f"in memory, as {tmp_path}/cache cannot be written" in rows.about


def test_few_pictures_are_not_cached(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(source, "FEW", 30)
    load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(source, "FEW_BYTES", 2000)
    load_rows(f"folder:{pictures}", pictures=options(tmp_path))
    assert len(names(tmp_path)) == 2


PREPARE = """
import sys, time
from pathlib import Path
from experiments.data import PictureOptions, load
from experiments.data.pictures import prepare, source
source.FEW, prepare.MOST_AT_ONCE = 0, 1
decode = prepare.decode_as_shown
def slow(path, channels, size):
    time.sleep(float(sys.argv[3]))
    return decode(path, channels, size)
prepare.decode_as_shown = slow
data = load("folder:" + sys.argv[1], pictures=PictureOptions(cache=Path(sys.argv[2])))
print(int(data.train.sum()) + int(data.test.sum()) + int(data.validation.sum()))
"""


def start(pictures, place, seconds):
    words = [sys.executable, "-c", PREPARE, str(pictures), str(place), str(seconds)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_killed_preparation_leaves_nothing_that_is_believed(tmp_path, pictures, monkeypatch):
    process = start(pictures, tmp_path / "cache", 0.2)
    while not list((tmp_path / "cache").glob(f".*{cache.PART}")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (part,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(cache, "ABANDONED_SECONDS", -1)
    expected = load(f"folder:{pictures}")
    dataset = load(f"folder:{pictures}", pictures=options(tmp_path))
    np.testing.assert_array_equal(whole(dataset), whole(expected))
    assert not part.exists()
    assert len(names(tmp_path)) == 2


@pytest.mark.slow
def test_processes_and_threads_that_prepare_at_once_do_not_disturb_each_other(
    tmp_path, pictures, monkeypatch
):
    monkeypatch.setattr(cache, "ABANDONED_SECONDS", 0.5)
    processes = [start(pictures, tmp_path / "cache", 0.1) for _ in range(3)]
    while len(list((tmp_path / "cache").glob(f".*{cache.PART}"))) < 3:
        time.sleep(0.01)
    time.sleep(0.6)  # from now on locks alone protect the temporary files of the processes
    found, expected = [], whole(load(f"folder:{pictures}"))

    def prepare_here():
        found.append(whole(load(f"folder:{pictures}", pictures=options(tmp_path))))

    threads = [threading.Thread(target=prepare_here) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sums = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert sums == [int(expected.sum())] * 3
    assert len(found) == 4
    for array in found:
        np.testing.assert_array_equal(array, expected)
    assert len(names(tmp_path)) == 2


def test_header_has_the_same_length_for_every_count():
    for shape in ((1, 1, 1), (16384, 16384, 3)):
        lengths = {len(cache._header(count, shape)) for count in (1, 9, 10, 12345, 10**9)}
        assert len(lengths) == 1


def test_names_of_files_hold_the_name_of_the_folder(tmp_path, pictures):
    pictures.rename(tmp_path / "My pictures é")
    load_rows(f"folder:{tmp_path}/My pictures é", pictures=options(tmp_path))
    for name in names(tmp_path):
        assert re.fullmatch(r"My-pictures-[0-9a-f]{8}-[0-9a-f]{24}\.(npy|json)", name)

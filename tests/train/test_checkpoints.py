"""Checkpoints are whole or not there, and are checked before they are used."""

import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from train_helpers import tiny_command

from train import checkpoints
from train.imagenet import main


def store(folder, value=0.0, *, shape=(4,), keep=3):
    """Checkpoints of one variable, and the variable."""
    variable = keras.Variable(np.full(shape, value, "float32"), name="layer.a")
    step = tf.Variable(0, dtype=tf.int64)
    contents = checkpoints.of_variables({"model": [variable]}, {"n": step})
    return variable, checkpoints.Checkpoints(folder, folder, *contents, keep)


@pytest.fixture
def three(tmp_path):
    """A folder with the checkpoints of steps 1, 2 and 10, of values 1, 2 and 10."""
    variable, store_ = store(tmp_path)
    for step in (1, 2, 10):
        variable.assign(np.full(4, step, "float32"))
        store_.save(step)
    return tmp_path


def test_the_newest_is_restored_and_the_oldest_are_pruned(three):
    variable, store_ = store(three)
    assert store_.restore() == (10, [])
    np.testing.assert_array_equal(variable, np.full(4, 10))
    store_.save(11)
    assert checkpoints.steps_in(three) == [11, 10, 2]
    assert store_.last_good == 11


def test_without_checkpoints_nothing_is_restored(tmp_path):
    assert store(tmp_path)[1].restore() == (None, [])


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone", "index", "state"])
def test_a_broken_newest_checkpoint_gives_way_to_the_one_before(three, damage):
    data, index = three / "ckpt-10.data-00000-of-00001", three / "ckpt-10.index"
    if damage == "flipped":
        data.write_bytes(bytes(255 - b for b in data.read_bytes()))
    elif damage == "truncated":
        data.write_bytes(data.read_bytes()[:5])
    elif damage == "gone":
        data.unlink()
    elif damage == "index":
        index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])
    else:
        (three / "checkpoint").write_text("nonsense {")
    variable, store_ = store(three)
    step, broken = store_.restore()
    assert store_.last_good == step  # what an error names, even beside a newer broken one
    assert step == (10 if damage == "state" else 2)
    np.testing.assert_array_equal(variable, np.full(4, step))
    assert len(broken) == (damage != "state")
    if broken:
        assert f"{three}/ckpt-10 cannot be read" in broken[0]
    store_.save(10)
    assert store(three)[1].restore() == (10, [])


def test_no_readable_checkpoint_is_an_error(three):
    for path in three.glob("*.data-*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"ckpt-10 cannot(.|\n)*ckpt-1 cannot(.|\n)*None is left"):
        store(three)[1].restore()


def test_a_checkpoint_of_another_model_is_refused_and_nothing_changes(three):
    variable, store_ = store(three, value=7.0, shape=(5,))
    with pytest.raises(ValueError, match=r"another model(.|\n)*expected \[5\], received \[4\]"):
        store_.restore()
    np.testing.assert_array_equal(variable, np.full(5, 7))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs of 1 MiB")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(small_disk):
    variable, store_ = store(small_disk, 3.0, shape=(50_000,))
    store_.save(1)
    variable.assign(np.full(50_000, 4.0))
    store_.save(2)
    (small_disk / "filling").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    with pytest.raises(OSError, match=r"step 3 could not be written(.|\n)*last good .* step 2"):
        store_.save(3)
    assert checkpoints.steps_in(small_disk) == [2, 1]
    assert not list(small_disk.glob("ckpt-3*"))
    (small_disk / "filling").unlink()
    variable, store_ = store(small_disk, shape=(50_000,))
    assert store_.restore() == (2, [])
    assert float(variable[0]) == 4


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_with_one_sentence(small_disk):
    with pytest.raises(SystemExit) as stopped:
        main(tiny_command(small_disk / "run", "model_overrides.widths=[32,64]", "wiring=chain"))
    message = str(stopped.value)
    assert "could not be written" in message or "No space left" in message
    for step in checkpoints.steps_in(small_disk / "run" / "checkpoints"):
        tf.train.load_checkpoint(str(small_disk / "run" / "checkpoints" / f"ckpt-{step}"))
    assert not (small_disk / "run" / "results.json").exists()

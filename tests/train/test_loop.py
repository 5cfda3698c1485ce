"""A run stops, goes on and ends as it should, whatever happens on the way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from train_helpers import ROOT, TINY, logged_steps, tiny_command, wait_for_step

from train import checkpoints
from train.classification import datasets
from train.classification.recipes import get_recipe
from train.classification.run import ClassificationRun
from train.imagenet import main
from train.loop import orbit_log
from train.strategies import one_device


@pytest.mark.xdist_group("classified")
def test_an_evaluation_that_was_missed_is_made_up_for(classified, tmp_path):
    """Killed between checkpoint and evaluation: the row of the epoch appears after all."""
    recipe, workdir, _ = classified
    history = json.loads((workdir / "history.json").read_text())
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "history.json").write_text(json.dumps(history[:2]))
    run = ClassificationRun(recipe, datasets.load_data(recipe), one_device())
    run.restore(tmp_path)
    with orbit_log(tmp_path / "log"):
        (row,) = run.train_epochs()
    assert (row["epoch"], row["step"], row["examples"]) == (3, 132, 360)
    assert row["accuracy"] == pytest.approx(history[-1]["accuracy"])
    assert json.loads((tmp_path / "history.json").read_text()) == [*history[:2], row]


@pytest.mark.xdist_group("classified")
def test_the_log_says_how_far_the_run_is(classified):
    """The first step alone, then at most the 10 of the recipe, and less at an epoch's end."""
    _, workdir, _ = classified
    lines = [x for x in (workdir / "train.log").read_text().splitlines() if x.startswith("step ")]
    steps = [int(re.match(r"step (\d+)/132, loss \d+\.\d{4}", line)[1]) for line in lines]
    assert (steps[0], steps[-1]) == (1, 132)
    assert {44, 88} < set(steps)
    assert max(np.diff(steps)) == 10
    assert "left" not in lines[0]
    assert all(re.search(r", \d:\d\d:\d\d left$", line) for line in lines[1:])
    assert lines[-1].endswith("0:00:00 left")


def test_a_run_that_diverges_stops_and_says_so(tmp_path):
    with pytest.raises(SystemExit, match=r"not finite at step \d+: training has diverged"):
        main(tiny_command(tmp_path / "run", "learning_rate=1e30", "wiring=chain"))
    assert not (tmp_path / "run" / "results.json").exists()


def test_replicas_that_do_not_divide_the_batch_are_refused():
    recipe = get_recipe("digits_resnet20", [*TINY, "batch_size=127"])

    class TwoReplicas:
        num_replicas_in_sync = 2

    with pytest.raises(ValueError, match="batch_size=127, 2 replicas"):
        ClassificationRun(recipe, None, TwoReplicas())


def start(arguments, **options):
    """Starts `train.imagenet`."""
    return subprocess.Popen(
        [sys.executable, "-m", "train.imagenet", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        **options,
    )


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(tmp_path):
    """kill -9 at random steps, within epochs and between; the hash is that of a quiet run."""
    settings = ("epochs=4", "deterministic=true", "checkpoint_steps=10", "steps_per_loop=2")
    targets = sorted(np.random.default_rng().integers(1, 4 * 44 - 20, 3).tolist())
    for target in targets:
        process = start(tiny_command(tmp_path / "killed", *settings))
        wait_for_step(tmp_path / "killed", target)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed" / "results.json").exists()
    hashes = []
    for name in ("killed", "quiet"):
        assert start(tiny_command(tmp_path / name, *settings)).wait() == 0
        results = json.loads((tmp_path / name / "results.json").read_text())
        hashes.append(results["weights_sha256"])
        history = json.loads((tmp_path / name / "history.json").read_text())
        assert [row["epoch"] for row in history] == list(range(1, 5))
    assert hashes[0] == hashes[1], f"killed at {targets}"


@pytest.mark.slow
def test_sigterm_saves_and_the_command_goes_on_past_a_broken_checkpoint(tmp_path):
    arguments = tiny_command(tmp_path, "steps_per_loop=2", "checkpoint_epochs=3", "wiring=chain")
    process = start(arguments, stderr=subprocess.PIPE)
    wait_for_step(tmp_path, 7)
    process.terminate()
    _, message = process.communicate()
    assert process.returncode == 143
    assert b"Stopped and saved" in message
    (saved,) = checkpoints.steps_in(tmp_path / "checkpoints")
    assert saved >= 8
    seen = len(logged_steps(tmp_path))
    # Meanwhile a newer checkpoint has come to harm: the run says so and takes the whole one.
    for part in ("index", "data-00000-of-00001"):
        whole = (tmp_path / "checkpoints" / f"ckpt-{saved}.{part}").read_bytes()
        broken = whole if part == "index" else whole[:100]
        (tmp_path / "checkpoints" / f"ckpt-{saved + 1}.{part}").write_bytes(broken)
    process = start(arguments, stdout=subprocess.PIPE)
    output, _ = process.communicate()
    assert process.returncode == 0
    # The console wraps lines, in the middle of a long path too.
    assert f"ckpt-{saved + 1}cannotberead" in "".join(output.decode().split())
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == 132
    assert logged_steps(tmp_path)[seen] == saved

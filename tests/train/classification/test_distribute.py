"""A run under each strategy, on logical CPU devices and local processes.

Batch normalisation is synchronised and the learning rate low, so that what is left between two
ways of computing the same sums is rounding, which a high rate would amplify within 20 steps.
"""

import json
import pathlib
import signal
import time

import numpy as np
import pytest
from train_helpers import (
    finish,
    logged_steps,
    start,
    start_workers,
    tiny_command,
    wait_for_step,
)

from train import checkpoints

ONE_RUN = pathlib.Path(__file__).with_name("one_run.py")
SAME = ("wiring=dynamic", "synchronized_norm=true", "learning_rate=0.005")


def cluster_command(workdir, *settings):
    command = ["-m", "train.imagenet", "--strategy", "multi_worker"]
    return [*command, *tiny_command(workdir, "epochs=2", *settings)]


def load(workdir):
    return np.load(workdir / "weights.npz"), json.loads((workdir / "rows.json").read_text())[-1]


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    """The folder of 21 steps on one device."""
    workdir = tmp_path_factory.mktemp("one")
    finish([start([ONE_RUN, "one_device", 1, workdir, *SAME])])
    return workdir


def assert_same(one, other, capsys, name):
    weights, metrics = load(one)
    others, other_metrics = load(other)
    worst = max(float(np.abs(weights[k] - others[k]).max()) for k in weights)
    with capsys.disabled():
        print(f"\n{name}: largest difference of a weight after 21 steps {worst:.1e}")
    for path in weights:
        np.testing.assert_allclose(others[path], weights[path], rtol=1e-5, atol=1e-5, err_msg=path)
    # Nothing to leave out: all edges are open, none by so little that rounding could close it.
    assert metrics["near_threshold"] == 0
    assert metrics["open_rate/stage2"] == 1
    assert metrics["examples"] == other_metrics["examples"] == 360
    for key in ("train_loss", "loss", "accuracy", "train_accuracy", "distinct_paths"):
        np.testing.assert_allclose(other_metrics[key], metrics[key], rtol=1e-4, err_msg=key)


@pytest.mark.slow
@pytest.mark.xdist_group("distribute")
def test_two_replicas_train_as_one(one_worker, tmp_path, capsys):
    finish([start([ONE_RUN, "mirrored", 2, tmp_path, *SAME])])
    assert_same(one_worker, tmp_path, capsys, "2 replicas")


@pytest.mark.slow
@pytest.mark.xdist_group("distribute")
def test_two_workers_train_as_one(one_worker, tmp_path, capsys):
    finish(start_workers([ONE_RUN, "multi_worker", 1, tmp_path, *SAME]))
    assert_same(one_worker, tmp_path, capsys, "2 workers")


@pytest.mark.slow
def test_the_other_options_work_on_replicas(tmp_path):
    """And statistics that are not synchronised are averaged: the replicas have the same."""
    options = ["dtype=mixed_float16", "clip_norm=1.0", "optimizer=adamw", "learning_rate=0.01"]
    options += ["ema_momentum=0.9", "accumulation_steps=2", "mixup_alpha=0.2"]
    finish([start([ONE_RUN, "mirrored", 2, tmp_path, "wiring=dynamic", *options])])
    _, row = load(tmp_path)
    assert np.isfinite(row["loss"])
    assert (row["step"], row["examples"], row["apart"]) == (21, 360, 0)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_past_the_last_checkpoint(tmp_path):
    arguments = cluster_command(tmp_path, "checkpoint_steps=10", "steps_per_loop=5")
    workers = start_workers(arguments)
    try:
        wait_for_step(tmp_path, 15)
        workers[1].send_signal(signal.SIGKILL)
        workers[1].communicate()
        output, _ = workers[0].communicate(timeout=120)
    finally:
        for worker in workers:
            worker.kill()
    assert workers[0].returncode == 1, output
    assert "Another worker is gone" in output
    kept = checkpoints.steps_in(tmp_path / "checkpoints")[0]
    assert kept >= 10
    seen = logged_steps(tmp_path)
    chief, other = finish(start_workers(arguments))
    assert logged_steps(tmp_path)[len(seen)] == kept
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["steps"] == 2 * (1437 // 32)
    assert results["test_images"] == 360
    assert (tmp_path / "export" / "1" / "saved_model.pb").exists()
    assert "test_accuracy" in chief
    assert "test accuracy" not in other


@pytest.mark.slow
def test_a_worker_that_waits_says_for_whom_and_ends_on_ctrl_c(tmp_path):
    alone, other = start_workers(cluster_command(tmp_path / "run"))
    other.kill()
    other.communicate()
    lines = iter(alone.stdout.readline, "")
    assert any("Waiting for all workers of TF_CONFIG: 127.0.0.1:" in line for line in lines)
    time.sleep(2)  # until TensorFlow waits
    try:
        alone.send_signal(signal.SIGINT)
        assert alone.wait(timeout=30) != 0
    finally:
        alone.kill()
        alone.communicate()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sigterm_to_one_worker_stops_both_at_the_same_step(tmp_path):
    workers = start_workers(cluster_command(tmp_path, "steps_per_loop=2"))
    wait_for_step(tmp_path, 6)
    workers[1].send_signal(signal.SIGTERM)
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [143, 143], outputs
    assert "Stopped and saved" in outputs[0]
    (step,) = checkpoints.steps_in(tmp_path / "checkpoints")
    assert step >= 6
    assert checkpoints.steps_in(tmp_path / ".worker-1" / "checkpoints") == [step]

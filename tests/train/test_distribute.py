"""A run under each strategy, on logical CPU devices and local processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ARGUMENTS = ["--config", "digits_resnet20"]
for item in (
    "model_overrides.depths=[1,2]",
    "model_overrides.widths=[8,16]",
    "input_shape=[8,8,3]",
    "epochs=2",
    "batch_size=32",
):
    ARGUMENTS += ["--set", item]


def start(code, environment=()):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict(environment)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes):
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def check(workdir):
    results = json.loads((workdir / "results.json").read_text())
    assert results["steps"] == 2 * (1437 // 32)
    assert results["test_images"] == 360
    assert results["test_accuracy"] > 0.15
    assert (workdir / "checkpoints" / f"ckpt-{results['steps']}.index").exists()
    assert (workdir / "export" / "1" / "saved_model.pb").exists()


@pytest.mark.slow
def test_mirrored_over_two_logical_devices(tmp_path):
    code = f"""
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from train.imagenet import main
main({[*ARGUMENTS, "--strategy", "mirrored", "--workdir", str(tmp_path)]!r})
"""
    finish([start(code)])
    check(tmp_path)


@pytest.mark.slow
def test_two_local_workers(tmp_path):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    arguments = [*ARGUMENTS, "--strategy", "multi_worker", "--workdir", str(tmp_path)]
    code = f"from train.imagenet import main; main({arguments!r})"
    workers = [
        start(
            code,
            {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}})},
        )
        for i in range(2)
    ]
    chief, other = finish(workers)
    check(tmp_path)
    assert "test_accuracy" in chief
    assert "test accuracy" not in other

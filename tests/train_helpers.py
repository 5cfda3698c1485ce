"""Tiny runs, and runs in processes of their own: starting and watching them."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

from train.classification.recipes import get_recipe
from train.detection.recipes import RECIPES

ROOT = pathlib.Path(__file__).parents[1]
TINY = (  # settings of `digits_resnet20`: 44 steps an epoch
    "model_overrides.depths=[1,2]",
    "model_overrides.widths=[8,16]",
    "input_shape=[8,8,3]",
    "batch_size=32",
    "epochs=3",
)
TINY_DETECTOR = (  # settings of the tiny recipes of `train.coco`: 3 steps an epoch
    'model_overrides={"depths":[1,2,1,1],"widths":[8,8,16,16]}',
    "fpn_filters=16",
    "fc_dims=32",
    "num_proposals=16",
    "num_sampled_rois=16",
    "batch_size=16",
    "epochs=2",
    "evaluation_epochs=1",
    "warmup_steps=0",
    "train_images=48",
    "validation_images=20",
    "steps_per_loop=1",
)
# Untrained RetinaNets are sure of nothing: boxes of any score.
ANY_SCORE = 'garden={"task":{"model":{"detection_generator":{"pre_nms_score_threshold":0.001}}}}'


def flags(*settings):
    """`--set` flags of a command line."""
    return [part for setting in settings for part in ("--set", setting)]


def tiny_command(workdir, *settings):
    """Arguments of `train.imagenet` for a tiny run."""
    command = ["--config", "digits_resnet20", "--workdir", str(workdir)]
    return [*command, *flags(*TINY, *settings)]


def tiny_detector(name, *settings):
    """The recipe of a tiny detector."""
    return get_recipe(name, [*TINY_DETECTOR, *settings], RECIPES)


def detector_command(workdir, *settings, name="coco_tiny_retinanet"):
    """Arguments of `train.coco` for a tiny detector."""
    command = ["--config", name, "--workdir", str(workdir)]
    return [*command, *flags(*TINY_DETECTOR, *settings)]


def logged_steps(workdir):
    """Steps that Orbit has logged for the run in `workdir`, in order, with repetitions."""
    lines = (workdir / "train.log").read_text().splitlines()
    return [int(line.split()[3]) for line in lines if line.startswith("train | step:")]


def wait_for_step(workdir, step, seconds=300):
    """Waits until a run has logged the step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if max(logged_steps(workdir), default=0) >= step:
                return
        time.sleep(0.05)
    raise AssertionError(f"{workdir} did not reach step {step} in {seconds} s")


def start(arguments, environment=()):
    """Starts Python with these arguments in the project's folder."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict(environment)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes):
    """Waits for processes to end well, and returns what they printed."""
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def start_workers(arguments, count=2):
    """Starts Python as so many workers of a cluster on this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    config = {"cluster": {"worker": hosts}}
    return [
        start(
            arguments,
            {"TF_CONFIG": json.dumps({**config, "task": {"type": "worker", "index": i}})},
        )
        for i in range(count)
    ]

"""Training step of a detector with a dynamic backbone against its static twin: time and memory.

python -m benchmarks.detection [--config coco_tiny_fasterrcnn ...] [--set key=value ...]
    [--repeats 11] [--output FILE]

Real training steps of Model Garden's task (forward, losses, backward, SGD) on scenes of digits.
Times are medians of steps that alternate between the wirings in one process; peak memory is the
resident set's growth over a built model, in a process of its own for each wiring.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.measure import resident

WIRINGS = ("chain", "dynamic")
WARMUP = 2
# The backbone is the whole ResNet-50, the rest as small as in the tiny recipes.
SETTINGS = ("model=resnet50", "model_overrides={}", "image_size=[256,256]", "batch_size=4")


def build_step(config, overrides, wiring, scenes):
    """A function without arguments that does one training step."""
    import tensorflow as tf

    from train.detection.data import load_data
    from train.detection.recipes import RECIPES
    from train.detection.run import DetectionRun
    from train.recipes import get_recipe

    recipe = get_recipe(config, [*overrides, f"wiring={wiring}"], RECIPES)
    data = load_data(recipe, scenes, scenes)
    run = DetectionRun(recipe, data, tf.distribute.OneDeviceStrategy("/cpu:0"))
    inputs = next(iter(run.task.build_inputs(run.params.task.train_data)))

    @tf.function
    def step():
        logs = run.task.train_step(inputs, run.model, run.trainer.optimizer)
        return logs[run.task.loss]

    return lambda: float(step())


def measure_times(config, overrides, repeats, scenes):
    """Seconds of a step, a list for each wiring, taken in turn."""
    steps = {w: build_step(config, overrides, w, scenes) for w in WIRINGS}
    times = {w: [] for w in WIRINGS}
    for i in range(WARMUP + repeats):
        for wiring, step in steps.items():
            start = time.perf_counter()
            step()
            if i >= WARMUP:
                times[wiring].append(time.perf_counter() - start)
    return times


def measure_memory(config, overrides, wiring, scenes):
    """MiB by which the resident set of this process peaks above a built model. Linux only."""
    step = build_step(config, overrides, wiring, scenes)
    before = resident("VmRSS")
    for _ in range(WARMUP):
        step()
    return resident("VmHWM") - before


def measure(config, overrides, repeats, scenes):
    """A row a wiring: seconds of a step and peak MiB, and both as ratios to `chain`."""
    times = measure_times(config, overrides, repeats, scenes)
    rows = []
    for wiring in WIRINGS:
        line = [sys.executable, "-m", "benchmarks.detection", "--memory-of", wiring, scenes]
        line += ["--config", config]
        line += [part for item in overrides for part in ("--set", item)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        rows.append(
            {
                "config": config,
                "overrides": list(overrides),
                "wiring": wiring,
                "seconds": round(statistics.median(times[wiring]), 3),
                "seconds_quartiles": [
                    round(q, 3) for q in statistics.quantiles(times[wiring], n=4)[::2]
                ],
                "peak_mib": round(float(done.stdout.split()[-1]), 1),
            }
        )
    for row in rows:
        for key in ("seconds", "peak_mib"):
            row[f"{key}_ratio"] = round(row[key] / rows[0][key], 3)
    return rows


def main(argv=None):
    """Prints the table as JSON lines, and writes it where `--output` says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", action="append", help="recipe (repeatable)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a key of the recipe")
    parser.add_argument("--repeats", type=int, default=11, help="timed steps of each wiring")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    overrides = tuple(args.set or SETTINGS)
    if args.memory_of:
        wiring, scenes = args.memory_of
        print(measure_memory(args.config[0], overrides, wiring, pathlib.Path(scenes)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        from train.detection.scenes import make_digit_scenes

        scenes = pathlib.Path(folder) / "scenes"
        make_digit_scenes(scenes, train=8, validation=2)
        for config in args.config or ("coco_tiny_fasterrcnn", "coco_tiny_retinanet"):
            for row in measure(config, overrides, args.repeats, scenes):
                rows.append(row)
                print(json.dumps(row), flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

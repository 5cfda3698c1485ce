"""Training step of a graph stage against its static twin: time and peak memory, as ratios.

python -m benchmarks.speed [--wirings dynamic learned ...] [--repeats 15] [--output FILE]

Two stages of six bottleneck nodes, features 14 x 14 x 256, batch 32, float32. Times are medians of
steps that alternate between the wirings in one process; peak memory is the resident set's growth
over a built and traced model, in a process of its own for each wiring.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

NODES, STAGES, BATCH, SIZE, FILTERS = 6, 2, 32, 14, 64
WARMUP = 3


def build_step(wiring):
    """A function without arguments that does one training step of the two stages."""
    import keras
    import tensorflow as tf

    from dgnet_keras.layers import GraphStage
    from dgnet_keras.layers.blocks import BottleneckBlock

    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((SIZE, SIZE, FILTERS * 4))
    for k in range(STAGES):
        blocks = [BottleneckBlock(FILTERS, name=f"block_{i}") for i in range(NODES)]
        x = GraphStage(blocks, wiring=wiring, name=f"stage{k}")(x)["features"]
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    optimizer = keras.optimizers.SGD(0.01)
    optimizer.build(model.trainable_variables)
    images = tf.random.stateless_normal((BATCH, *inputs.shape[1:]), (0, 0))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(images, training=True)))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    return lambda: float(step())


def measure_times(wirings, repeats):
    """Seconds of a step, a list for each wiring, taken in turn."""
    steps = {wiring: build_step(wiring) for wiring in wirings}
    times = {wiring: [] for wiring in wirings}
    for i in range(WARMUP + repeats):
        for wiring, step in steps.items():
            start = time.perf_counter()
            step()
            if i >= WARMUP:
                times[wiring].append(time.perf_counter() - start)
    return times


def measure_memory(wiring):
    """MiB by which the resident set of this process peaks above a built model. Linux only."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(2)
    step = build_step(wiring)
    before = resident("VmRSS")
    for _ in range(WARMUP):
        step()
    return resident("VmHWM") - before


def resident(key):
    """MiB of this process's memory: `"VmRSS"` is resident now, `"VmHWM"` was at most."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def measure(wirings, repeats):
    """Rows of the table: wiring, milliseconds, MiB, and both as ratios to `chain`."""
    wirings = ["chain", *(w for w in wirings if w != "chain")]
    times = measure_times(wirings, repeats)
    rows = []
    for wiring in wirings:
        command = [sys.executable, "-m", "benchmarks.speed", "--memory-of", wiring]
        memory = [
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(3)
        ]
        quartiles = statistics.quantiles(times[wiring], n=4)
        rows.append(
            {
                "wiring": wiring,
                "milliseconds": round(1000 * statistics.median(times[wiring]), 1),
                "milliseconds_quartiles": [round(1000 * q, 1) for q in quartiles[::2]],
                "peak_mib": round(statistics.median(memory), 1),
            }
        )
    for row in rows:
        for key in ("milliseconds", "peak_mib"):
            row[f"{key}_ratio"] = round(row[key] / rows[0][key], 3)
    return rows


def main(argv=None):
    """Prints the table as JSON lines, and writes it where `--output` says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--wirings", nargs="+", default=["dynamic", "learned", "complete"])
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each wiring")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory_of:
        print(measure_memory(args.memory_of))
        return
    rows = measure(args.wirings, args.repeats)
    for row in rows:
        print(json.dumps(row))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Training step of a ResNeXt-50 stage: GroupedConv2D against keras.layers.Conv2D(groups=32).

python -m benchmarks.grouped_conv [--stage 1] [--repeats 3] [--output FILE]

A stage of resnext50_32x4d at 224 pixels without its downsampling, batch 16, float32, wiring chain.
Medians of steps that alternate in one process.
"""

import argparse
import json
import os
import pathlib
import statistics
import time
import unittest.mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

GROUPS, BATCH = 32, 16
# Stage: blocks, channels, channels of the 3x3, height and width in pixels.
STAGES = {1: (3, 256, 128, 56), 2: (4, 512, 256, 28), 3: (6, 1024, 512, 14), 4: (3, 2048, 1024, 7)}


def build_stage(convolution, stage_number):
    """A stage whose grouped convolutions are `convolution` layers."""
    import keras

    from dgnet_keras.layers import GraphStage, conv
    from dgnet_keras.layers.blocks import BottleneckBlock

    num_blocks, channels, filters, size = STAGES[stage_number]
    keras.utils.set_random_seed(0)
    with unittest.mock.patch.object(conv, "GroupedConv2D", convolution):
        nodes = [
            BottleneckBlock(filters, out_channels=channels, groups=GROUPS, name=f"block_{i}")
            for i in range(num_blocks)
        ]
        stage = GraphStage(nodes, wiring="chain", name="stage")
        stage.build((None, size, size, channels))
    return stage


def build_step(convolution, stage_number):
    """A function that does one training step of `build_stage`."""
    import keras
    import tensorflow as tf

    _, channels, _, size = STAGES[stage_number]
    stage = build_stage(convolution, stage_number)
    optimizer = keras.optimizers.SGD(0.01)
    optimizer.build(stage.trainable_variables)
    images = tf.random.stateless_normal((BATCH, size, size, channels), (0, 0))

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(stage(images, training=True)["features"]))
        variables = stage.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    return lambda: float(step())


def measure(stage_number, repeats):
    """Median seconds of a step with each layer, and their ratio."""
    import keras

    from dgnet_keras.layers.conv import GroupedConv2D

    steps = {"GroupedConv2D": GroupedConv2D, "keras.layers.Conv2D": keras.layers.Conv2D}
    steps = {name: build_step(cls, stage_number) for name, cls in steps.items()}
    losses = {name: step() for name, step in steps.items()}
    times = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["keras.layers.Conv2D"] / medians["GroupedConv2D"]
    return {"stage": stage_number, "first_loss": losses, "seconds": medians, "times_faster": ratio}


def main(argv=None):
    """Prints the result as JSON, and writes it where `--output` says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grouped_conv",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", type=int, choices=STAGES, default=1, help="1 by default")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each layer")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    args = parser.parse_args(argv)
    text = json.dumps(measure(args.stage, args.repeats), indent=2) + "\n"
    print(text, end="")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)


if __name__ == "__main__":
    main()

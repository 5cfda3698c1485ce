"""What a training step costs on many replicas: on paper, by simulation, and one number checked.

python -m benchmarks.scale paper
python -m benchmarks.scale local [--steps N] [--output FILE]

`paper` prints a table for 8 and 64 replicas. Its assumptions are those of `Machine`, and:

- Replicas are synchronous. A step is the slowest replica's computing, then the all-reduce of the
  gradients in a ring: 2 (R - 1) / R of their bytes through each link, and 2 (R - 1) latencies. None
  of it hides behind computing, so it is an upper bound.
- With paths, a replica computes `fixed + per_share * share` of the static twin's time (measured on
  a CPU), where the share is the mean over its images. An image's share is normal, with mean and
  standard deviation of a trained network. `simulate` draws it, and takes the slowest of R.
- Synchronised batch normalisation reduces a vector of moments per layer, forward and backward. Its
  bytes are few, so each goes through a tree: 2 log2(R) latencies.

`local` checks that the slowest decides. Two processes, each on a core of its own, train a network
with paths under `MultiWorkerMirroredStrategy`, and have more images (`dear`) or fewer (`cheap`) to
compute; the four cases take turns. It also reads from the traced step how many bytes are reduced,
which on paper are those of the trainable weights.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import measure, skipping_networks
from benchmarks.accuracy_table import fill_in
from train.turns import in_turns

IMAGES = {"dear": 128, "cheap": 64}
MODEL, SIZE = "resnet20_cifar", 32


@dataclasses.dataclass(frozen=True)
class Machine:
    """Assumed, not measured: eight GPUs a host joined by NVLink, hosts by a network of 100 Gbit/s.

    Attributes:
        name: of the machine.
        bandwidth: bytes/s of a link of the ring.
        latency: seconds of a step of the ring.
    """

    name: str
    bandwidth: float
    latency: float


MACHINES = {8: Machine("one host, NVLink", 200e9, 5e-6), 64: Machine("8 hosts", 12.5e9, 20e-6)}


@dataclasses.dataclass(frozen=True)
class Network:
    """What replicas reduce.

    Attributes:
        parameters: trainable ones, in float32.
        norms: layers of batch normalisation.
    """

    parameters: int
    norms: int


@dataclasses.dataclass(frozen=True)
class Paths:
    """What was measured of a network with paths, whose training skips.

    Attributes:
        fixed: time of a step over the static twin's where nothing is computed, extended to there.
        per_share: what a share of 1 of the multiply-adds adds.
        share: mean share of an image.
        share_std: standard deviation of it.
    """

    fixed: float
    per_share: float
    share: float
    share_std: float


def measured_paths():
    """`Paths` of `resnet56_cifar`, from the rows of `benchmarks.paths` and `benchmarks.pareto`."""
    results = measure.ROOT / "benchmarks" / "results"
    rows = json.loads((results / "paths_onednn_avx512.json").read_text())
    wanted = {"model": "resnet56_cifar", "mode": "train"}
    times = {
        row["measured_share"]: row["ratios"]["path/chain"]["median"]
        for row in rows
        if wanted.items() <= row["settings"].items()
    }
    few, many = min(times), max(times)
    per_share = (times[many] - times[few]) / (many - few)
    finished = json.loads((results / "pareto_images.jsonl").read_text().splitlines()[0])
    return Paths(
        fixed=times[many] - per_share * many,
        per_share=per_share,
        share=finished["share_of_macs"],
        share_std=finished["share_std"],
    )


def reduce_seconds(size, replicas, machine):
    """Seconds of a ring all-reduce of so many bytes."""
    through = 2 * (replicas - 1) / replicas * size
    return through / machine.bandwidth + 2 * (replicas - 1) * machine.latency


def norm_seconds(norms, replicas, machine):
    """Seconds that synchronised batch normalisation of so many layers adds."""
    return 2 * norms * 2 * math.log2(replicas) * machine.latency


def simulate(paths, replicas, batch, steps=2000, seed=0):
    """Time of the slowest replica over the mean replica's, minus 1: mean over some steps.

    Args:
        paths: `Paths`.
        replicas: that wait for each other.
        batch: images of each.
        steps: to draw.
        seed: of the draws.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    images = rng.normal(paths.share, paths.share_std, (steps, replicas, batch)).clip(0, 1)
    times = paths.fixed + paths.per_share * images.mean(axis=2)
    return float((times.max(axis=1) / times.mean(axis=1)).mean() - 1)


def resnet50():
    """`Network` of `resnet50` with paths, counted."""
    import keras

    import dgnet_keras as dg

    model = dg.create("resnet50", wiring="path")
    kind = keras.layers.BatchNormalization
    return Network(
        parameters=sum(math.prod(v.shape) for v in model.trainable_variables),
        norms=sum(isinstance(layer, kind) for layer in model._flatten_layers()),
    )


def paper_table():
    """Lines of Markdown: `resnet50` with paths on each machine, at two batches of a replica."""
    titles = "replicas | machine | images a replica | step alone, ms | reduced, MB | all-reduce, ms"
    titles += " | synchronised normalisation, ms | slowest over mean"
    lines = [f"| {titles} |", "|---" * (titles.count("|") + 1) + "|"]
    network, paths = resnet50(), measured_paths()
    for batch, seconds in ((32, 0.016), (256, 0.100)):  # assumed: 2,000 and 2,600 images/s
        for replicas, machine in MACHINES.items():
            size = 4 * network.parameters
            cells = [replicas, machine.name, batch, f"{1000 * seconds:.0f}", f"{size / 1e6:.0f}"]
            cells.append(f"{1000 * reduce_seconds(size, replicas, machine):.1f}")
            cells.append(f"{1000 * norm_seconds(network.norms, replicas, machine):.1f}")
            cells.append(f"+ {100 * simulate(paths, replicas, batch):.1f} %")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def reduced_bytes(function):
    """Bytes that the collective reductions of a traced function take in."""
    import tensorflow as tf

    definition = function.graph.as_graph_def(add_shapes=True)
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    total = 0
    for node in nodes:
        if node.op.startswith("CollectiveReduce"):
            (shape,) = node.attr["_output_shapes"].list.shape
            size = math.prod(dimension.size for dimension in shape.dim)
            total += size * tf.as_dtype(node.attr["T"].type).size
    return total


def work(index, steps):
    """One of two processes of `TF_CONFIG`; the first prints what it measured, as JSON."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[index]})
    import keras
    import tensorflow as tf

    from dgnet_keras.budget import Pressure, apply_pressure

    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before anything else of TensorFlow
    batches = {k: skipping_networks.random_images(n, SIZE, index) for k, n in IMAGES.items()}
    with strategy.scope():
        settings = {"model": MODEL, "size": SIZE}  # by default training skips nothing
        model = skipping_networks.create(settings, "path", path_gradient="taken")
        apply_pressure(model, Pressure(1.0, 0.0, 0.0))
        optimizer = keras.optimizers.SGD(0.0, momentum=0.9)
        optimizer.build(model.trainable_variables)

    def update(images):
        labels = tf.range(tf.shape(images)[0]) % 10
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, model(images, training=True)
            )
            loss = tf.reduce_mean(losses)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    @tf.function(reduce_retracing=True)
    def step(images):
        return strategy.run(update, [images])

    def timed(kind):
        strategy.experimental_local_results(step(batches[kind]))[0].numpy()

    traced = step.get_concrete_function(batches["dear"])
    cases = list(itertools.product(IMAGES, IMAGES))  # both in the same order, or they would hang
    steps_of = {"/".join(case): functools.partial(timed, case[index]) for case in cases}
    times = in_turns(steps_of, dict.fromkeys(steps_of, steps))
    if index == 0:
        row = {
            "reduced_bytes": reduced_bytes(traced),
            "weight_bytes": 4 * sum(math.prod(v.shape) for v in model.trainable_variables),
            **measure.fields_of(times, [(name, "dear/dear") for name in steps_of][1:]),
            "environment": measure.environment(),
        }
        print(json.dumps(row), flush=True)


def free_ports(count):
    """So many ports of this host that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


def measure_local(steps):
    """The row of two processes.

    Raises:
        RuntimeError: if one of them fails, or there are no two cores.
    """
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        raise RuntimeError(f"Each process needs a core of its own. Received: {cores} for two")
    workers = [f"localhost:{port}" for port in free_ports(2)]
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        words = [sys.executable, "-m", "benchmarks.scale", "local", "--steps", str(steps)]
        processes.append(
            subprocess.Popen(
                [*words, "--worker", str(index)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=measure.ROOT,
                env={**os.environ, "TF_CONFIG": json.dumps(config)},
            )
        )
    while not any(codes := [process.poll() for process in processes]) and None in codes:
        time.sleep(0.2)
    for process in processes:  # the other would wait for one that has failed
        process.kill() if any(codes) else process.wait()
    if any(codes):
        raise RuntimeError(f"The processes ended with exit codes {codes}")
    return json.loads(processes[0].stdout.read().splitlines()[-1])


def main(argv=None):
    """Prints the table, or measures the row and prints and writes it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["paper", "local"])
    parser.add_argument("--steps", type=int, default=21, help="timed turns (21)")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="of the row, .json")
    parser.add_argument("--document", type=pathlib.Path, help="Markdown file for the table")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.what == "paper":
        lines = paper_table()
        print("\n".join(lines))
        if args.document:
            args.document.write_text(fill_in(args.document.read_text(), {"scale": lines}))
        return
    if args.worker is not None:
        work(args.worker, args.steps)
        return
    settings = {"model": MODEL, "size": SIZE, "images": IMAGES, "processes": 2}
    output = args.output or measure.ROOT / "benchmarks" / "results" / "scale.json"
    job = measure.Job(settings, {"all": args.steps})
    measure.fill(
        [job],
        measure.RowFile(output),
        lambda job: {**dataclasses.asdict(job), **measure_local(job.repeats["all"])},
    )


if __name__ == "__main__":
    main()

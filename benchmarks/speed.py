"""Speed and memory of networks against their static twins and peers, a table a command.

python -m benchmarks.speed models [--models resnet50 ...] [--batch-size N] [--no-peers] [...]
python -m benchmarks.speed memory | nodes | sizes | batches | aggregation [--output DIR] [...]

`models`: whole networks (224 x 224, batch 8; resnet20_cifar 32 x 32, batch 128): training step,
inference (also at batch 1 and 32), compile time, peak memory. `memory`: the last two alone, also of
paths. `nodes`: a stage of 2 to 36 bottleneck blocks (14 x 14 x 256, batch 16), also with
`max_nodes=6`. `sizes` (96 to 288 pixels, batch 4) and `batches` (1 to 32, 160 pixels): resnet50.
`aggregation`: the sum by edge weight and its gradient in several implementations, and the memory's
bandwidth.

Networks: `dynamic` (`dynamic_max6`: with `max_nodes=6`), `path` (every node on), `chain` (the
static twin), and the peers `keras_applications` and `keras_groups` (the static twin with Keras's
own grouped convolution, which goes through XLA; it takes seconds a step). float32, `tf.function`
without XLA; a training step is forward pass, softmax cross-entropy, gradient, and SGD with
momentum.

Times: the contestants take turns in one process, one step each, in rotating order; medians and
quartiles, and of the ratios turn by turn. Compile time (tracing and the first step) and peak memory
(variables, those of the optimizer included, and the growth of the resident peak in three steps
above the traced model; Linux only): medians over processes of their own.

Each row is written as it comes, to speed_TABLE.json, and a plot of all rows of that file to the
.png beside it. The name has `_onednn` where TensorFlow uses oneDNN, and `_avx512` on a CPU with
AVX-512, so that no file mixes them. Rows that are there already are not measured again, unless
with other repeats, or `--again`.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import measure, speed_aggregation, speed_networks

TABLES = ("models", "memory", "nodes", "sizes", "batches", "aggregation")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the table `models`.

    Attributes:
        size: height and width in pixels.
        batch: number of images.
        peer: of `speed_networks.PEERS`, or None.
    """

    size: int = 224
    batch: int = 8
    peer: str | None = None


MODELS = {
    "resnet50": Network(peer="keras_applications"),
    "regnetx_016": Network(peer="keras_groups"),
    "resnext50_32x4d": Network(peer="keras_groups"),
    "mobilenetv2_100": Network(peer="keras_applications"),
    "resnet20_cifar": Network(size=32, batch=128),
}
INFERENCE_BATCHES = (1, 32)
NODES = (2, 3, 4, 6, 8, 12, 18, 24, 36)
SIZES = (96, 128, 160, 224, 288)
BATCHES = (1, 2, 4, 8, 16, 32)
MODES = ("train", "inference")


def plan(table, options):
    """The jobs of a table, in order.

    Settings name the table, `measure` (`"time"`, `"cost"` or `"bandwidth"`), and the contestants.

    Args:
        table: of `TABLES`.
        options: the command's, with `quick`, `repeats`, `processes`; for `models` also `models`,
            `batch_size`, `peers`, `peer_repeats`.
    """
    planned = {
        "models": _plan_models,
        "memory": _plan_memory,
        "nodes": _plan_nodes,
        "sizes": _plan_sizes,
        "batches": _plan_batches,
        "aggregation": _plan_aggregation,
    }
    return planned[table](options)


def _time_job(contestants, options, **settings):
    repeats = dict.fromkeys(contestants, options.repeats)
    if "keras_groups" in repeats:
        repeats["keras_groups"] = min(options.peer_repeats, options.repeats)
    return measure.Job({**settings, "measure": "time", "contestants": contestants}, repeats)


def _cost_job(contestants, options, **settings):
    repeats = dict.fromkeys(contestants, options.processes)
    return measure.Job({**settings, "measure": "cost", "contestants": contestants}, repeats)


def _plan_models(options):
    jobs = []
    for name in options.models:
        network = MODELS[name]
        batch = options.batch_size or (4 if options.quick else network.batch)
        contestants = ["dynamic", "chain"]
        if options.peers and network.peer:
            contestants.append(network.peer)
        common = {"table": "models", "model": name, "size": network.size}
        for mode in MODES:
            jobs.append(_time_job(contestants, options, **common, mode=mode, batch=batch))
            jobs.append(_cost_job(contestants, options, **common, mode=mode, batch=batch))
        for other in () if options.quick else INFERENCE_BATCHES:
            if other != batch:
                jobs.append(
                    _time_job(contestants, options, **common, mode="inference", batch=other)
                )
    return jobs


def _plan_memory(options):
    jobs = []
    for name in options.models:
        network = MODELS[name]
        common = {"table": "memory", "model": name, "size": network.size}
        common["batch"] = 4 if options.quick else network.batch
        contestants = ["dynamic", "path", "chain"]
        jobs += [_cost_job(contestants, options, **common, mode=mode) for mode in MODES]
    return jobs


def _plan_nodes(options):
    size, batch = (4, 2) if options.quick else (14, 16)
    jobs = []
    for nodes in (2, 8) if options.quick else NODES:
        contestants = ["dynamic", "chain"] + ["dynamic_max6"] * (nodes > 6)
        common = {"table": "nodes", "nodes": nodes, "size": size, "batch": batch}
        jobs += [_time_job(contestants, options, **common, mode=mode) for mode in MODES]
        jobs.append(_cost_job(contestants, options, **common, mode="train"))
    return jobs


def _plan_grid(table, options, grid):
    model = "resnet20_cifar" if options.quick else "resnet50"
    return [
        _time_job(
            ["dynamic", "chain"], options, table=table, model=model, size=s, batch=b, mode=mode
        )
        for s, b in grid
        for mode in MODES
    ]


def _plan_sizes(options):
    grid = [(16, 2), (32, 2)] if options.quick else [(size, 4) for size in SIZES]
    return _plan_grid("sizes", options, grid)


def _plan_batches(options):
    grid = [(16, 1), (16, 2)] if options.quick else [(160, batch) for batch in BATCHES]
    return _plan_grid("batches", options, grid)


def _plan_aggregation(options):
    shapes = speed_aggregation.QUICK_SHAPES if options.quick else speed_aggregation.SHAPES
    size = speed_aggregation.ARRAY_BYTES // (100 if options.quick else 1)
    settings = {"table": "aggregation", "measure": "bandwidth", "array_bytes": size}
    jobs = [measure.Job(settings, {"all": options.repeats})]
    for batch, size, channels, sources in shapes:
        for mode in ("sum", "gradient"):
            names = [n for n in speed_aggregation.IMPLEMENTATIONS if mode == "sum" or n != "add_n"]
            shape = {"batch": batch, "size": size, "channels": channels, "sources": sources}
            jobs.append(_time_job(names, options, table="aggregation", **shape, mode=mode))
    return jobs


def measure_here(settings, repeats, contestant=None):
    """Measures in this process; dict of a row's fields, or a contestant's cost."""
    if settings["measure"] == "bandwidth":
        fields = speed_aggregation.measure_bandwidth(settings, repeats)
    elif settings["measure"] == "cost":
        fields = speed_networks.measure_cost(settings, contestant)
    elif settings["table"] == "aggregation":
        fields = speed_aggregation.measure_times(settings, repeats)
    else:
        fields = speed_networks.measure_times(settings, repeats)
    return {**fields, "environment": measure.environment()}


def measure_elsewhere(settings, repeats, contestant=None):
    """`measure_here` in a process of its own.

    Raises:
        RuntimeError: if that fails; it has said why on stderr.
    """
    job = {"settings": settings, "repeats": repeats, "contestant": contestant}
    return measure.elsewhere(["benchmarks.speed", settings["table"]], job)


def measure_row(job):
    """The row of a job: `settings`, `repeats`, what was measured, `environment`."""
    if job.settings["measure"] != "cost":
        return {**dataclasses.asdict(job), **measure_elsewhere(job.settings, job.repeats)}
    names = job.settings["contestants"]
    costs = {name: [] for name in names}
    for process in range(max(job.repeats.values())):
        for name in names[process % len(names) :] + names[: process % len(names)]:
            costs[name].append(measure_elsewhere(job.settings, job.repeats, name))
    return {
        **dataclasses.asdict(job),
        **speed_networks.summarize_costs(costs, names),
        "environment": costs[names[-1]][-1]["environment"],
    }


def parse(argv=None):
    """The command's options, defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--repeats", type=int, help="timed steps of each (15; aggregation: 31)")
    parser.add_argument("--processes", type=int, help="for compile time and peak memory (3)")
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="DIR", help="benchmarks/results; quick: runs/speed"
    )
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument(
        "--quick", action="store_true", help="tiny, without meaning; 0.5 to 2 minutes"
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "--models", nargs="+", choices=MODELS, metavar="NAME", help="all by default"
    )
    models.add_argument("--batch-size", type=int, help="of training and inference (8; cifar: 128)")
    models.add_argument("--no-peers", action="store_true", help="leave the peers out")
    models.add_argument("--peer-repeats", type=int, help="timed steps of keras_groups (3)")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    _check(parser, args)
    args.peers = not args.no_peers
    args.models = args.models or (["resnet20_cifar"] if args.quick else list(MODELS))
    args.repeats = args.repeats or (2 if args.quick else 31 if args.table == "aggregation" else 15)
    args.processes = args.processes or (1 if args.quick else 3)
    args.peer_repeats = args.peer_repeats or 3
    default = "runs/speed" if args.quick else "benchmarks/results"
    args.output = args.output or measure.ROOT / default
    return args


def _check(parser, args):
    for name in ("repeats", "processes", "batch_size", "peer_repeats"):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} must be at least 1. Received: {value}")
    own = ("models", "batch_size", "no_peers", "peer_repeats")
    given = ["--" + name.replace("_", "-") for name in own if getattr(args, name)]
    tables = ("models", "memory") if given == ["--models"] else ("models",)
    if args.table not in tables and given:
        named = " and ".join(tables)
        parser.error(f"{', '.join(given)}: of {named} alone. Received: {args.table}")


def main(argv=None):
    """Prints the table's new rows as JSON lines; writes rows and plot into `--output`."""
    args = parse(argv)
    if args.job:
        print(json.dumps(measure_here(**args.job)))
        return
    from benchmarks import speed_plots

    suffix = "_quick" * args.quick
    suffix += measure.machine_suffix()
    path = args.output / f"speed_{args.table}{suffix}.json"
    try:
        rows = measure.RowFile(path)
        measure.fill(plan(args.table, args), rows, measure_row, args.again)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    speed_plots.draw(args.table, rows.rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()

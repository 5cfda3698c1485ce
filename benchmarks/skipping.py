"""Time of networks that skip nodes, against the share of multiply-adds that is left.

python -m benchmarks.skipping [--networks resnet50 ...] [--shares 1.0 0.5 ...] [--batches N ...]
    [--modes inference train] [--repeats N] [--seconds S] [--output FILE]

A row is a network, a mode, a batch, and a share of the static twin's multiply-adds that images take
on average. Its contestants take turns in one process (medians and quartiles of ratios turn by
turn):

- `chain`: the static twin, the base of the ratios;
- `skip`: the dynamic network, whose images take paths of their own; nodes that are off for an image
  are not computed for it;
- `never`: the same network and weights, which computes all nodes;
- `peer`: a static network of the family with fewer blocks, of about the same multiply-adds.

Weights are random, and the training step's learning rate is 0, so that paths stay. Normalisation
has the statistics of some images. The images timed are none of those that the routers were set on;
of `CANDIDATES` batches they are the one whose share is nearest. At batch 1, `ONE_BY_ONE` images one
after the other are a measurement. A share below what a network can reach is measured as the least
one, once; `is_least` says so.

Each row is written as it comes, and a plot of all rows to docs/images (with `--output`, beside the
rows). Rows that are there already are not measured again, unless with other repeats, or `--again`.
The default file's name tells machines apart, as in `benchmarks.speed`.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import measure, skipping_networks


@dataclasses.dataclass(frozen=True)
class Network:
    """What is measured of a network.

    Attributes:
        size: height and width in pixels.
        batches: numbers of images, of inference.
        train_batches: likewise, of training.
    """

    size: int = 224
    batches: tuple = (1, 8, 32)
    train_batches: tuple = (8,)


NETWORKS = {
    "resnet50": Network(),
    "mobilenetv2_100": Network(),
    "regnetx_016": Network(),
    "resnet56_cifar": Network(size=32, batches=(1, 32, 128), train_batches=(32, 128)),
}
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
MODES = ("inference", "train")


def plan(options):
    """The jobs, in order: of a network, a mode and a batch from the largest share down."""
    jobs = []
    for name in options.networks:
        network = NETWORKS[name]
        for mode in options.modes:
            batches = network.train_batches if mode == "train" else network.batches
            for batch in batches:
                if options.batches and batch not in options.batches:
                    continue
                for share in sorted(options.shares, reverse=True):
                    settings = {"model": name, "size": network.size, "mode": mode, "batch": batch}
                    settings |= {"share": share, "contestants": list(skipping_networks.CONTESTANTS)}
                    repeats = dict.fromkeys(skipping_networks.CONTESTANTS, options.repeats)
                    jobs.append(measure.Job(settings, repeats))
    return jobs


def reachable(jobs, rows):
    """The jobs, one by one, without those below a share that was the least reachable."""
    series = ("model", "size", "mode", "batch")
    for job in jobs:
        least = [
            row["settings"]["share"]
            for row in rows.rows
            if row["is_least"] and all(row["settings"][k] == job.settings[k] for k in series)
        ]
        if not least or job.settings["share"] >= max(least):
            yield job


def measure_here(settings, repeats, seconds):
    """Measures in this process; dict of a row's fields."""
    fields = skipping_networks.measure_times(settings, repeats, seconds or math.inf)
    return {**fields, "environment": measure.environment()}


def measure_elsewhere(settings, repeats, seconds):
    """`measure_here` in a process of its own."""
    job = {"settings": settings, "repeats": repeats, "seconds": seconds}
    return measure.elsewhere(["benchmarks.skipping"], job)


def parse(argv=None):
    """The command's options, defaults filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.skipping",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--batches", nargs="+", type=int, help="only these of the networks' own")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--repeats", type=int, default=15, help="timed turns (15)")
    parser.add_argument(
        "--seconds", type=float, help="of a row, after which no further turn begins"
    )
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="of rows, .json")
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1. Received: {args.repeats}")
    if not all(0 < share <= 1 for share in args.shares):
        parser.error(f"--shares must be in (0, 1]. Received: {args.shares}")
    return args


def files(output):
    """Paths of the rows and of the plot."""
    if output:
        return output, output.with_suffix(".png")
    name = "skipping" + measure.machine_suffix()
    results = measure.ROOT / "benchmarks" / "results"
    return results / f"{name}.json", measure.ROOT / "docs" / "images" / f"{name}.png"


def main(argv=None):
    """Prints the new rows as JSON lines; writes rows and plot."""
    args = parse(argv)
    if args.job:
        print(json.dumps(measure_here(**args.job)))
        return
    from benchmarks import skipping_plots

    def measure_row(job):
        fields = measure_elsewhere(job.settings, job.repeats, args.seconds)
        return {**dataclasses.asdict(job), **fields}

    path, image = files(args.output)
    try:
        rows = measure.RowFile(path)
        measure.fill(reachable(plan(args), rows), rows, measure_row, args.again)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    if rows.rows:
        skipping_plots.draw(rows.rows, image)


if __name__ == "__main__":
    main()

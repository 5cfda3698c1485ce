"""Time of networks with paths over their static twins', by share of multiply-adds.

python -m benchmarks.paths [--networks resnet56_cifar ...] [--shares 1.0 0.5 ...] [--repeats N]
    [--output FILE] [--table] [--document FILE]

A row is a network, a mode, a batch and a share. Static twin and paths take turns in one process
(medians and quartiles of ratios turn by turn). Weights are random; each router is set so that some
images take its block and others do not, then `calibrate` finds the threshold of the share on the
images that are timed. At a share of 1 every image takes every block. The training step's learning
rate is 0, and there is no noise, so that paths stay. It is timed for both `path_gradient`: `path`
is "taken", which computes a block for the images that take it, `path_all` the default, "all".

Each row is written as it comes; rows that are there already are not measured again.
"""

import argparse
import dataclasses
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import measure, skipping_networks, skipping_paths, speed_networks
from benchmarks.accuracy_table import fill_in
from train.turns import in_turns

# Network: size in pixels, and (mode, batch) pairs.
NETWORKS = {
    "resnet56_cifar": (32, (("inference", 128), ("inference", 1), ("train", 128))),
    "resnet50": (224, (("inference", 8), ("inference", 1), ("train", 8))),
    "mobilenetv2_100": (224, (("inference", 8), ("inference", 1), ("train", 8))),
    "regnetx_016": (224, (("inference", 8), ("inference", 1), ("train", 8))),
}
SHARES = (1.0, 0.7, 0.5)
# Contestants besides the static twin, and how the table calls them.
PATHS = {
    "inference": {"path": "inference"},
    "train": {
        "path_all": 'training, `path_gradient="all"`',
        "path": 'training, `path_gradient="taken"`',
    },
}


def plan(networks, shares, repeats):
    """The jobs, in order."""
    return [
        measure.Job(
            {"model": name, "size": size, "mode": mode, "batch": batch, "share": share},
            dict.fromkeys(["chain", *PATHS[mode]], repeats),
        )
        for name in networks
        for size, kinds in [NETWORKS[name]]
        for mode, batch in kinds
        for share in shares
    ]


def spread_routers(model, images):
    """Sets each router so that about half of the images that reach it take its block."""
    import numpy as np
    import tensorflow as tf

    from dgnet_keras.layers.graph import GraphStage

    rng = np.random.default_rng(0)
    x = images
    for layer in model.layers[1:]:
        if not isinstance(layer, GraphStage):
            x = layer(x, training=False)
            continue
        for i, block in enumerate(layer.blocks):
            router = layer.routers().get(i)
            if router is None:
                x = block(x, training=False)
                continue
            pooled = tf.reduce_mean(tf.cast(x, tf.float32), axis=(1, 2))
            router.moving_mean.assign(tf.reduce_mean(pooled, axis=0))
            router.moving_variance.assign(tf.math.reduce_variance(pooled, axis=0) + 1e-6)
            router.kernel.assign(rng.normal(size=router.kernel.shape))
            router.bias.assign([0.0])
            logits = router(x).numpy().astype(float)
            router.bias.assign([-np.median(logits)])
            is_on = logits > np.median(logits)
            x = tf.where(is_on[:, None, None, None], block(x, training=False), x)


def build_models(settings):
    """The static twin, `chain`, and `path`, whose routers are set or, at a share of 1, all on.

    Args:
        settings: dict with `model`, `size` and `share`, and perhaps `spec`.
    """
    import numpy as np

    import dgnet_keras as dg
    from dgnet_keras.budget import Pressure, apply_pressure

    chain = skipping_networks.create(settings, "chain")
    # By default training computes every block for every image.
    path = skipping_networks.create(settings, "path", path_gradient="taken")
    size = settings["size"]
    images = skipping_networks.random_images(64 if size < 100 else 32, size, 1)
    skipping_paths.settle_statistics(chain, images[: skipping_networks.SETTLE_ON])
    dg.copy_weights(chain, path)
    apply_pressure(path, Pressure(1.0, 0.0, 0.0))
    if settings["share"] == 1:
        path.set_threshold(-np.inf)
    else:
        spread_routers(path, images)
    return {"chain": chain, "path": path}


def by_default(path, settings):
    """A network with the weights of `path` that trains as by default, `path_gradient="all"`."""
    from dgnet_keras.budget import Pressure, apply_pressure

    other = skipping_networks.create(settings, "path")
    apply_pressure(other, Pressure(1.0, 0.0, 0.0))
    other.set_weights(path.get_weights())  # the threshold is one of them
    return other


def build(settings):
    """Models by name, the images to time, and the share that they compute."""
    import numpy as np
    import tensorflow as tf

    import dgnet_keras as dg
    from dgnet_keras.complexity import model_costs

    models = build_models(settings)
    path, batch = models["path"], settings["batch"]
    parts = skipping_networks.ONE_BY_ONE if batch == 1 else 1
    timed = skipping_networks.random_images(batch * parts, settings["size"], 2)
    if settings["share"] < 1:
        dg.calibrate(path, timed.numpy(), settings["share"], batch_size=32)
    if settings["mode"] == "train":
        models["path_all"] = by_default(path, settings)
    found = dg.adjacency(path, timed.numpy())
    share = model_costs(path).shares(found, len(timed))
    return models, tf.split(timed, parts), float(np.mean(share))


def measure_here(settings, repeats):
    """Measures in this process; dict of a row's fields."""
    models, batches, share = build(settings)
    steps = {
        name: speed_networks.prepare(
            model, settings["mode"], settings["batch"], name, batches, learning_rate=0.0
        )[0]
        for name, model in models.items()
    }
    times = in_turns(steps, repeats)
    return {
        "measured_share": measure.rounded(share),
        **measure.fields_of(times, [(name, "chain") for name in models if name != "chain"]),
        "environment": measure.environment(),
    }


def table(rows):
    """The lines of a Markdown table: time over the static twin's, by share of multiply-adds."""
    shares = sorted({row["settings"]["share"] for row in rows}, reverse=True)
    titles = ["network", "", "batch", "static, ms", *(f"share {share:g}" for share in shares)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, (_, kinds) in NETWORKS.items():
        for mode, batch in kinds:
            found = {
                row["settings"]["share"]: row
                for row in rows
                if [row["settings"][key] for key in ("model", "mode", "batch")]
                == [name, mode, batch]
            }
            for path, title in PATHS[mode].items() if found else ():
                static = found[max(found)]["milliseconds"]["chain"]["median"]
                cells = [f"`{name}`", title, batch, f"{static:.1f}"]
                cells += [_cell(found.get(share), path) for share in shares]
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _cell(row, path):
    """The ratio; where the share that was timed is another, that too."""
    ratio = row and row["ratios"].get(f"{path}/chain")
    if not ratio:
        return "-"
    timed = row["measured_share"]
    is_off = abs(timed - row["settings"]["share"]) >= 0.005
    return f"{ratio['median']:.2f}" + f" at {timed:.2f}" * is_off


def main(argv=None):
    """Prints the new rows as JSON lines, and writes them; then the table of all rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paths",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--repeats", type=int, default=15, help="timed turns (15)")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE", help="of rows, .json")
    parser.add_argument("--table", action="store_true", help="measure nothing, show the rows")
    parser.add_argument("--document", type=pathlib.Path, help="Markdown file for the table")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job:
        print(json.dumps(measure_here(**args.job)))
        return

    def measure_row(job):
        settings = {"settings": job.settings, "repeats": job.repeats}
        return {**dataclasses.asdict(job), **measure.elsewhere(["benchmarks.paths"], settings)}

    name = f"paths{measure.machine_suffix()}.json"
    path = args.output or measure.ROOT / "benchmarks" / "results" / name
    jobs = [] if args.table else plan(args.networks, args.shares, args.repeats)
    rows = measure.RowFile(path)
    measure.fill(jobs, rows, measure_row)
    lines = table(rows.rows)
    print("\n".join(lines))
    if args.document:
        args.document.write_text(fill_in(args.document.read_text(), {"paths": lines}))


if __name__ == "__main__":
    main()

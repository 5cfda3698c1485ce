"""The networks that `benchmarks.skipping` compares, the images that they see, and their times."""

import itertools
import math

from benchmarks import measure, skipping_paths, speed_networks
from train.turns import in_turns

CONTESTANTS = ("chain", "skip", "never", "peer")
ONE_BY_ONE = 8  # images of a measurement at batch 1
CANDIDATES = 8  # batches of images, of which the one of the nearest share is timed
SET_ON = 64  # images that routers are set on; 32 of large ones
SETTLE_ON = 8


def create(settings, wiring, skip="never", **spec):
    """A classifier: the static twin, or one that is to have paths; with or without skipping.

    Args:
        settings: dict with `model`, a variant's name, `size` in pixels and perhaps `spec`, dict of
            fields of the variant.
        wiring: `"chain"`, `"path"` or `"dynamic"`.
        skip: `"auto"` or `"never"`, in inference and in training.
        **spec: more fields of the variant, and options of its graphs.
    """
    import keras

    import dgnet_keras as dg

    keras.utils.set_random_seed(0)
    options = {}
    if wiring == "dynamic":
        options = {
            "skip": skip,
            "skip_in_training": skip,
            "threshold": skipping_paths.THRESHOLD,
            "edge_scale": skipping_paths.EDGE_SCALE,
            "init": "static",
        }
    shape = (settings["size"], settings["size"], 3)
    fields = {**settings.get("spec", {}), **spec}
    return dg.create(settings["model"], input_shape=shape, wiring=wiring, **options, **fields)


def random_images(count, size, seed):
    """Noise about a colour of each image's own, (count, size, size, 3)."""
    import tensorflow as tf

    colors = tf.random.stateless_normal((count, 1, 1, 3), (seed, 0))
    noise = tf.random.stateless_normal((count, size, size, 3), (seed, 1))
    return 0.5 * colors + noise


def chain_and_skip(settings):
    """The static twin and the dynamic network, whose paths are set; same blocks and statistics.

    Returns:
        Tuple of the two models and `is_least`, whether the share was too low to be reached.
    """
    import dgnet_keras as dg
    from dgnet_keras.complexity import model_costs

    size, training = settings["size"], settings["mode"] == "train"
    chain = create(settings, "chain")
    skip = create(settings, "dynamic", "auto")
    images = random_images(SET_ON if size < 100 else SET_ON // 2, size, 1)
    skipping_paths.settle_statistics(chain, images[:SETTLE_ON])
    dg.copy_weights(chain, skip)
    share_on, is_reached = skipping_paths.solve_share_on(
        model_costs(skip), model_costs(chain).total, settings["share"]
    )
    batch = settings["batch"] if training else None
    skipping_paths.set_paths(skip, images, share_on, training, batch)
    return chain, skip, not is_reached


def shares(model, found, base):
    """Multiply-adds of each image of an adjacency over those of the static twin."""
    from dgnet_keras.complexity import model_costs

    count = len(next(iter(found.values())))
    return model_costs(model).of_images(found, count).numpy() / base


def choose_batches(settings, model, base):
    """Of some random batches the one whose share is nearest; a list of its parts to time."""
    import numpy as np
    import tensorflow as tf

    batch, training = settings["batch"], settings["mode"] == "train"
    parts = ONE_BY_ONE if batch == 1 else 1
    best, nearest = None, math.inf
    for seed in range(CANDIDATES):
        batches = tf.split(random_images(batch * parts, settings["size"], 100 + seed), parts)
        found = skipping_paths.paths(model, batches, training)
        distance = abs(float(np.mean(shares(model, found, base))) - settings["share"])
        if distance < nearest:
            best, nearest = batches, distance
        if nearest < 0.005:
            break
    return best


def peer_depths(chain, base, share):
    """Blocks a stage with the multiply-adds nearest to a share of those of a static network.

    Of those within half a percent of the share, or all as near as can be, the one that leaves all
    stages the most alike parts.
    """
    from dgnet_keras.complexity import model_costs

    graphs = model_costs(chain).graphs
    stages = chain.backbone.stages
    depths = [len(stage.blocks) for stage in stages]
    block = [int(graphs[s.name].nodes[-1]) if s.name in graphs else 0 for s in stages]

    def key(kept):
        macs = base - sum(m * (d - k) for m, d, k in zip(block, depths, kept, strict=True))
        parts = [k / d for k, d in zip(kept, depths, strict=True) if d > 1]
        return max(abs(macs / base - share), 0.005), max(parts) - min(parts)

    return min(itertools.product(*(range(1, d + 1) for d in depths)), key=key)


def build(settings):
    """The contestants and the images that they are timed with.

    Returns:
        Tuple of models by name, list of batches, and the first fields of the row: `is_least`,
        `shares` (of multiply-adds, measured) by name, `distinct_paths`, `peer_depths`.
    """
    import numpy as np

    from dgnet_keras.complexity import model_costs

    training = settings["mode"] == "train"
    chain, skip, is_least = chain_and_skip(settings)
    never = create(settings, "dynamic", "never")
    base = model_costs(chain).total
    batches = choose_batches(settings, skip, base)
    never.set_weights(skip.get_weights())
    measured, distinct = {"chain": 1.0}, {}
    for name, model in (("skip", skip), ("never", never)):
        found = skipping_paths.paths(model, batches, training)
        measured[name] = float(np.mean(shares(model, found, base)))
        distinct[name] = skipping_paths.count_distinct(found)
    depths = peer_depths(chain, base, measured["skip"])
    peer = create(settings, "chain", depths=depths)
    skipping_paths.settle_statistics(peer, batches[0][:SETTLE_ON])
    measured["peer"] = model_costs(peer).total / base
    models = {"chain": chain, "skip": skip, "never": never, "peer": peer}
    return (
        models,
        batches,
        {
            "is_least": is_least,
            "shares": {name: measure.rounded(value) for name, value in measured.items()},
            "distinct_paths": distinct["skip"],
            "images": sum(len(b) for b in batches),
            "peer_depths": list(depths),
        },
    )


def measure_times(settings, repeats, seconds=math.inf):
    """Times of the contestants in turns in this process: fields of a row.

    Returns:
        Those of `build`, and dicts `milliseconds` by contestant and `ratios` by `"name/chain"`;
        `turns` is how many were timed.
    """
    models, batches, fields = build(settings)
    steps = {
        name: speed_networks.prepare(
            model, settings["mode"], settings["batch"], name, batches, learning_rate=0.0
        )[0]
        for name, model in models.items()
    }
    times = in_turns(steps, repeats, seconds)
    return {
        **fields,
        "turns": len(times["chain"]),
        **measure.fields_of(times, speed_networks.pairs(settings["contestants"])),
    }

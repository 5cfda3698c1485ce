"""Times and memory of a network, its paths and its static twin, in a process of its own.

python -m benchmarks.accelerator.networks SETTINGS, a JSON list of dicts; each gives a row.
"""

import functools
import json
import sys
import time

from benchmarks import measure, paths, skipping_networks, speed_networks
from benchmarks.accelerator.workers import send
from train.turns import in_turns

TURNS = 30
SECONDS, CPU_SECONDS = 6.0, 45.0  # after which no further turn begins


@functools.lru_cache(maxsize=1)
def build(model, size, dtype, share):
    """The contestants by name: `chain`, `path`, and with every edge open `dynamic`."""
    import keras

    keras.config.set_dtype_policy(dtype)
    settings = {"model": model, "size": size}
    models = paths.build_models({**settings, "share": share})
    if share == 1:
        models["dynamic"] = speed_networks.build(settings, "dynamic")
    return models


def images(settings):
    """The batches to time: one, or one by one some images."""
    import tensorflow as tf

    parts = skipping_networks.ONE_BY_ONE if settings["batch"] == 1 else 1
    count = parts * settings["batch"]
    return tf.split(skipping_networks.random_images(count, settings["size"], 2), parts)


def peak_growth(step):
    """MiB of the GPU by which memory grows during a step."""
    import tensorflow as tf

    before = tf.config.experimental.get_memory_info("GPU:0")["current"]
    tf.config.experimental.reset_memory_stats("GPU:0")
    step()
    return (tf.config.experimental.get_memory_info("GPU:0")["peak"] - before) / 2**20


def measure_row(settings):
    """The row of some settings."""
    import numpy as np
    import tensorflow as tf

    import dgnet_keras as dg
    from dgnet_keras.complexity import model_costs
    from dgnet_keras.layers.devices import has_accelerator

    models = build(*(settings[key] for key in ("model", "size", "dtype", "share")))
    batches = images(settings)
    share = 1.0
    if settings["share"] < 1:
        timed = np.concatenate(batches)
        dg.calibrate(models["path"], timed, settings["share"], batch_size=len(batches[0]))
        found = dg.adjacency(models["path"], timed)
        share = float(np.mean(model_costs(models["path"]).shares(found, len(timed))))
    if settings["mode"] == "train":
        models = {**models, "path_all": paths.by_default(models["path"], settings)}
    steps, memory, seconds = {}, {}, {}
    for name, model in models.items():
        start = time.perf_counter()
        step, _, variables = speed_networks.prepare(
            model,
            settings["mode"],
            settings["batch"],
            name,
            batches,
            learning_rate=0.0,
            jit_compile=settings["xla"] or None,
        )
        step()
        seconds[name] = measure.rounded(time.perf_counter() - start)
        if tf.config.list_physical_devices("GPU"):  # a CPU's allocator keeps what it has got
            memory[name] = measure.rounded(variables + peak_growth(step))
        steps[name] = step
    limit = SECONDS if has_accelerator() else CPU_SECONDS
    times = in_turns(steps, dict.fromkeys(steps, TURNS), limit)
    return {
        "repeats": {},
        "measured_share": measure.rounded(share),
        "turns": len(times["chain"]),
        "peak_mib": memory,
        "first_step_seconds": seconds,
        **measure.fields_of(times, [(name, "chain") for name in models if name != "chain"]),
        "environment": measure.environment(),
    }


def main():
    """Sends a row for each of the settings."""
    for settings in json.loads(sys.argv[1]):
        try:
            row = measure_row(settings)
        except Exception as error:  # out of memory, a kernel that is missing: the next may do
            row = {"repeats": {}, "error": f"{type(error).__name__}: {error}"[:500]}
        send({"settings": settings, **row})


if __name__ == "__main__":
    main()

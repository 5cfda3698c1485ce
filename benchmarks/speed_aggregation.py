"""The sum of feature maps by edge weight in several implementations, and the memory's bandwidth.

Imported by `benchmarks.speed`, whose table `aggregation` this is.
"""

from benchmarks import measure
from train.turns import in_turns

# Batch, height and width in pixels, channels, sources.
SHAPES = (
    (8, 56, 256, 3),
    (8, 28, 512, 4),
    (8, 14, 1024, 6),
    (8, 7, 2048, 3),
    (128, 32, 16, 3),
)
QUICK_SHAPES = ((2, 8, 16, 3),)
IMPLEMENTATIONS = ("einsum", "aggregate", "aggregate_xla", "multiply_add", "add_n")
ARRAY_BYTES = 100_000_000


def _einsum(column, *features):
    import tensorflow as tf

    return tf.einsum("bj,jbhwc->bhwc", column, tf.stack(features))


def _aggregate(column, *features):
    from dgnet_keras.layers.aggregation import aggregate

    return aggregate(column, list(features))


def _multiply_add(column, *features):
    import tensorflow as tf

    weights = [tf.reshape(w, [-1, 1, 1, 1]) for w in tf.unstack(column, axis=1)]
    total = weights[0] * features[0]
    for weight, x in zip(weights[1:], features[1:], strict=True):
        total = total + weight * x
    return total


def _add_n(column, *features):
    """Without weights: what reading each map and writing one costs."""
    import tensorflow as tf

    return tf.add_n(features)


def functions(mode):
    """Dict of implementation to `tf.function` of (upstream, column, *features).

    Args:
        mode: `"sum"` gives the sum; `"gradient"` gives the gradients of column and features by
            `upstream`, without computing the sum where they do not need it.
    """
    import tensorflow as tf

    def make(implementation, **options):
        @tf.function(**options)
        def compute_sum(upstream, column, *features):
            return implementation(column, *features)

        @tf.function(**options)
        def compute_gradient(upstream, column, *features):
            with tf.GradientTape() as tape:
                tape.watch((column, features))
                total = implementation(column, *features)
            return tape.gradient(total, (column, *features), output_gradients=upstream)

        return compute_sum if mode == "sum" else compute_gradient

    made = {
        "einsum": make(_einsum),
        "aggregate": make(_aggregate),
        "aggregate_xla": make(_aggregate, jit_compile=True),
        "multiply_add": make(_multiply_add),
    }
    if mode == "sum":  # the gradient of a sum without weights is `upstream` itself
        made["add_n"] = make(_add_n)
    return made


def random_inputs(batch, size, channels, sources):
    """Upstream, column and features, float32 tensors."""
    import tensorflow as tf

    shape = (batch, size, size, channels)
    column = tf.random.stateless_uniform((batch, sources), (0, 0))
    maps = [tf.random.stateless_normal(shape, (0, k + 1)) for k in range(sources + 1)]
    return maps[0], column, *maps[1:]


def measure_times(settings, repeats):
    """Fields of a row: `milliseconds`, `ratios`, and `gigabytes_per_second` of the least bytes.

    The least is to read each source and write the sum; for the gradient, to read `upstream` and
    each source, and write each source's gradient.
    """
    batch, size, channels, sources = (settings[k] for k in ("batch", "size", "channels", "sources"))
    inputs = random_inputs(batch, size, channels, sources)
    made = functions(settings["mode"])
    traced = {n: made[n].get_concrete_function(*inputs) for n in settings["contestants"]}
    steps = {name: lambda f=function: f(*inputs) for name, function in traced.items()}
    times = in_turns(steps, repeats)
    maps = sources + 1 if settings["mode"] == "sum" else 2 * sources + 1
    least = 4 * maps * batch * size**2 * channels
    spreads = {name: measure.spread([1000 * t for t in v]) for name, v in times.items()}
    pairs = [(name, "einsum") for name in steps if name != "einsum"]
    if "add_n" in steps:
        pairs.append(("aggregate", "add_n"))
    return {
        "milliseconds": spreads,
        "ratios": measure.paired_ratios(times, pairs),
        "least_bytes": least,
        "gigabytes_per_second": {
            name: measure.rounded(least / 1e6 / s["median"]) for name, s in spreads.items()
        },
    }


def measure_bandwidth(settings, repeats):
    """Fields of a row: `milliseconds` and `gigabytes_per_second` of copies and sums of arrays.

    A copy reads and writes one array, a sum reads two and writes one. NumPy (one thread) writes
    into an array that is there, TensorFlow into a new one.
    """
    import numpy as np
    import tensorflow as tf

    count = settings["array_bytes"] // 4
    a, b, out = (np.full(count, value, "float32") for value in (1, 2, 0))
    x, y = tf.constant(a), tf.constant(b)
    add = tf.function(lambda x, y: x + y)
    steps = {
        "numpy_copy": lambda: np.copyto(out, a),
        "numpy_add": lambda: np.add(a, b, out=out),
        "tensorflow_copy": lambda: tf.raw_ops.DeepCopy(x=x),
        "tensorflow_add": lambda: add(x, y),
    }
    times = in_turns(steps, dict.fromkeys(steps, next(iter(repeats.values()))))
    spreads = {name: measure.spread([1000 * t for t in v]) for name, v in times.items()}
    arrays = {name: 2 if name.endswith("copy") else 3 for name in steps}
    return {
        "milliseconds": spreads,
        "gigabytes_per_second": {
            name: measure.rounded(4 * count * arrays[name] / 1e6 / s["median"])
            for name, s in spreads.items()
        },
    }

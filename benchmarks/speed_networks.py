"""The networks that `benchmarks.speed` compares, and their training step and inference.

A contestant's name says which network it is:

- `dynamic`, `chain`: the network and its static twin;
- `path`: the network with paths, every node on;
- `dynamic_max6`: `dynamic` with `max_nodes=6`;
- `keras_applications`: the network of `keras.applications`, random weights;
- `keras_groups`: the static twin with Keras's own grouped convolution, which goes through XLA.
"""

import contextlib
import math
import time
import unittest.mock

from benchmarks import measure
from train.turns import in_turns

PEERS = ("keras_applications", "keras_groups")
STAGE_FILTERS = 64


def build(settings, contestant):
    """The Keras model of a contestant: images to logits.

    Args:
        settings: dict with `size`, height and width in pixels, and either `model`, a variant's
            name, or `nodes`, the number of blocks of a stage.
        contestant: its name.
    """
    import keras

    import dgnet_keras as dg

    keras.utils.set_random_seed(0)
    size = settings["size"]
    if "nodes" in settings:
        return _build_stage(settings["nodes"], size, contestant)
    if contestant == "keras_applications":
        networks = {
            "resnet50": keras.applications.ResNet50,
            "mobilenetv2_100": keras.applications.MobileNetV2,
        }
        return networks[settings["model"]](
            weights=None, input_shape=(size, size, 3), classifier_activation=None
        )
    wiring = contestant if contestant in ("dynamic", "path") else "chain"
    model = dg.create(settings["model"], input_shape=(size, size, 3), wiring=wiring)
    if wiring == "path":
        model.set_threshold(-math.inf)
    return model


def _build_stage(num_nodes, size, contestant):
    """Bottleneck blocks of 256 channels as one stage; its pooled features are the logits."""
    import keras

    from dgnet_keras.layers import GraphStage
    from dgnet_keras.layers.blocks import BottleneckBlock

    inputs = keras.Input((size, size, 4 * STAGE_FILTERS))
    blocks = [BottleneckBlock(STAGE_FILTERS, name=f"block_{i}") for i in range(num_nodes)]
    wiring, _, max_nodes = contestant.partition("_max")
    stage = GraphStage(
        blocks, wiring=wiring, max_nodes=int(max_nodes) if max_nodes else None, name="stage"
    )
    outputs = keras.layers.GlobalAveragePooling2D()(stage(inputs)["features"])
    return keras.Model(inputs, outputs)


@contextlib.contextmanager
def tracing(contestant):
    """Inside, functions are traced as the contestant's are."""
    import keras

    from dgnet_keras.layers.conv import GroupedConv2D

    if contestant == "keras_groups":
        stock = keras.layers.Conv2D.convolution_op
        with unittest.mock.patch.object(GroupedConv2D, "convolution_op", stock):
            yield
    else:
        yield


def prepare(model, mode, batch, contestant, batches=None, learning_rate=1e-3, jit_compile=None):
    """Traces a step.

    Args:
        model: images to logits.
        mode: `"train"` (forward pass, softmax cross-entropy, gradient, SGD with momentum 0.9) or
            `"inference"`.
        batch: number of images.
        contestant: its name.
        batches: list of images, (batch, height, width, channels), each of which takes a step of its
            own; None means random ones, once.
        learning_rate: of the training step; with 0 the weights stay as they are.
        jit_compile: whether XLA compiles the step; None leaves it to TensorFlow.

    Returns:
        A function without arguments that does a step with each of the batches, the seconds that
        tracing took, and the MiB of the variables, those of the optimizer included.
    """
    import keras
    import tensorflow as tf

    if batches is None:
        batches = [tf.random.stateless_normal((batch, *model.input_shape[1:]), (0, 0))]
    labels = tf.range(batch) % model.output_shape[-1]
    weights = list(model.weights)
    if mode == "train":
        optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
        optimizer.build(model.trainable_variables)
        weights += optimizer.variables

    @tf.function(jit_compile=jit_compile)
    def train(images, labels):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, tf.cast(model(images, training=True), tf.float32)
            )
            loss = tf.reduce_mean(losses)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    @tf.function(jit_compile=jit_compile)
    def infer(images):
        return model(images, training=False)

    function, rest = (train, (labels,)) if mode == "train" else (infer, ())
    start = time.perf_counter()
    with tracing(contestant):
        concrete = function.get_concrete_function(batches[0], *rest)
    seconds = time.perf_counter() - start
    variables_mib = sum(math.prod(w.shape) * w.value.dtype.size for w in weights) / 2**20

    def step():
        for images in batches:
            result = concrete(images, *rest).numpy()
        return result

    return step, seconds, variables_mib


def count_macs(model):
    """Multiply-adds of an image: convolutions and dense layers, and a graph's routers and edges."""
    import keras

    import dgnet_keras as dg

    if any(isinstance(layer, dg.layers.GraphStage) for layer in model.layers):
        return dg.count_macs(model)["macs"]
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            total += math.prod(layer.output.shape[1:]) * math.prod(layer.kernel.shape[:2])
        elif isinstance(layer, keras.layers.Conv2D):
            total += math.prod(layer.output.shape[1:]) * math.prod(layer.kernel.shape[:3])
        elif isinstance(layer, keras.layers.Dense):
            total += layer.output.shape[-1] * layer.kernel.shape[0]
    return total


def pairs(contestants):
    """(name, name of the base) of the ratios: all to `chain`, and `dynamic` to the peers."""
    own = [(name, "chain") for name in contestants if name != "chain"]
    return own + [("dynamic", name) for name in contestants if name in PEERS]


def measure_times(settings, repeats):
    """Times of the contestants in turns in this process: fields of a row.

    Returns:
        Dict of `milliseconds`, `ratios`, `ratios_per_mac`, `parameters` (trainable ones) and
        `macs`; each a dict by contestant, or by `"name/base"`.
    """
    steps, parameters, macs = {}, {}, {}
    for name in settings["contestants"]:
        model = build(settings, name)
        steps[name], _, _ = prepare(model, settings["mode"], settings["batch"], name)
        parameters[name] = sum(math.prod(v.shape) for v in model.trainable_variables)
        macs[name] = count_macs(model)
    times = in_turns(steps, repeats)
    fields = measure.fields_of(times, pairs(settings["contestants"]))
    ratios = fields["ratios"]
    return {
        **fields,
        "ratios_per_mac": {
            f"{a}/{b}": measure.rounded(ratios[f"{a}/{b}"]["median"] * macs[b] / macs[a])
            for a, b in pairs(settings["contestants"])
        },
        "parameters": parameters,
        "macs": macs,
    }


def measure_cost(settings, contestant):
    """Seconds until the first step is done, and MiB at most, of a contestant in this process.

    Returns:
        Dict of `compile_seconds` (tracing and the first step), `trace_seconds`, `variables_mib`,
        and `peak_mib` (variables, and growth of the resident peak in three steps).
    """
    model = build(settings, contestant)
    step, trace_seconds, variables_mib = prepare(
        model, settings["mode"], settings["batch"], contestant
    )
    seconds = []

    def timed():
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)

    growth = measure.peak_growth(timed)
    return {
        "compile_seconds": trace_seconds + seconds[0],
        "trace_seconds": trace_seconds,
        "variables_mib": variables_mib,
        "peak_mib": variables_mib + growth,
    }


def summarize_costs(costs, contestants):
    """Fields of a row from the costs of several processes, a list of dicts by contestant."""
    fields = {
        key: {name: measure.spread([c[key] for c in costs[name]]) for name in contestants}
        for key in ("compile_seconds", "trace_seconds", "variables_mib", "peak_mib")
    }
    for key in ("compile", "peak"):
        values = fields["compile_seconds" if key == "compile" else "peak_mib"]
        fields[f"{key}_ratios"] = {
            f"{a}/{b}": measure.rounded(values[a]["median"] / values[b]["median"])
            for a, b in pairs(contestants)
        }
    return fields

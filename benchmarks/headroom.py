"""How much could wiring that differs by image help a trained network whose blocks stay as they are?

python -m benchmarks.headroom [--study cifar10] [--wiring learned] [--seed 0] [--workdir DIR]

Takes finished runs of `benchmarks.accuracy` (their weights are in its workdir), in float32 and
inference mode, and moves the edge weights of each image away from what the network gives it:

- `oracle`: against the gradient of the image's own loss, label and all. No router can know it:
  it shows whether edge weights could matter at all.
- `shared`: against the mean gradient of training images, the same for every image.
- `linear`: against a gradient that is predicted as a router would, each edge's by a linear
  function of its source's pooled features (ridge regression on training images).

Each with the length of step that gives the least loss on other training images (0 is allowed),
edge weights clipped to [0, 1]. `explained` is the share of the variance of the images' gradients
that the predictions explain on the test images (R^2 about the training mean): what part of the
wiring that would suit an image a router can see. `explained_by_trees` is the same for gradient
boosted trees that see the pooled features of all sources up to the edge's: more than any router.
One JSON object a run.
"""

import dataclasses
import operator
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import finished_runs
from benchmarks.accuracy_runs import load_images
from benchmarks.accuracy_studies import WEIGHTS
from benchmarks.measure import ROOT

OUTPUT = ROOT / "benchmarks" / "results" / "headroom.jsonl"
FIT, CHOOSE = 20_000, 5_000
STEPS = (0.0, *(10.0 ** (k / 2) for k in range(-6, 5)))
BATCH = 500


def rewired(model, images, own, change):
    """What a classifier answers when its edge weights are changed while it runs.

    Args:
        model: a classifier; none of its stages is split into several graphs.
        images: preprocessed, (batch, height, width, channels).
        own: dict of stage name to adjacency, (batch, N + 1, N + 1), that is changed.
        change: function of (stage name, j) and the pooled features of source j, (batch, channels),
            to what is added to the weights of edges j -> j + 1, ..., N: (batch, N - j).

    Returns:
        Dict: `logits`, (batch, classes), and `pooled`, dict of (stage name, j) to (batch,
        channels).
    """
    import tensorflow as tf

    from dgnet_keras.layers.aggregation import aggregate
    from dgnet_keras.layers.graph import GraphStage

    pooled = {}
    x = images
    for layer in model.layers[1:]:
        if not isinstance(layer, GraphStage):
            x = layer(x, training=False)
            continue
        if not layer.graphs:
            x = layer(x, training=False)["features"]
            continue
        outputs, rows = [], []
        for j, block in enumerate(layer.blocks):
            x = block(x, training=False)
            outputs.append(x)
            key = (layer.name, j)
            pooled[key] = tf.reduce_mean(x, axis=(1, 2))
            row = own[layer.name][:, j, j + 1 :] + change(key, pooled[key])
            rows.append(tf.unstack(tf.clip_by_value(row, 0.0, 1.0), axis=1))
            column = [row[j - k] for k, row in enumerate(rows)]
            x = aggregate(tf.stack(column, axis=1), outputs)
    return {"logits": x, "pooled": pooled}


class Headroom:
    """A trained network, with the losses and gradients of its edge weights by image."""

    def __init__(self, model):
        import tensorflow as tf

        from dgnet_keras.adjacencies import connectivity_model

        self.model = model
        connectivity = connectivity_model(model)

        def losses(images, labels, change):
            own = connectivity(images, training=False)
            found = rewired(model, images, own, change)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, found["logits"])
            right = tf.argmax(found["logits"], axis=1, output_type=labels.dtype) == labels
            return {"loss": loss, "right": right, "pooled": found["pooled"]}

        @tf.function(reduce_retracing=True)
        def gradients(images, labels):
            own = connectivity(images, training=False)
            zeros = {
                (stage, j): tf.zeros_like(matrix[:, j, j + 1 :])
                for stage, matrix in own.items()
                for j in range(matrix.shape[1] - 1)
            }
            with tf.GradientTape() as tape:
                tape.watch(zeros)
                found = losses(images, labels, lambda key, pooled: zeros[key])
                total = tf.reduce_sum(found["loss"])
            return {"gradient": tape.gradient(total, zeros), "pooled": found["pooled"]}

        @tf.function(reduce_retracing=True)
        def moved(images, labels, step, kernels, biases, own_gradients):
            def change(key, pooled):
                toward = tf.matmul(pooled, kernels[key]) + biases[key] + own_gradients[key]
                return -step * toward

            found = losses(images, labels, change)
            return {"loss": found["loss"], "right": found["right"]}

        self._gradients, self._moved = gradients, moved

    def gradients(self, images, labels):
        """Per image: dicts `gradient` of the loss by (stage, j) and `pooled` features, NumPy."""
        return _in_batches(self._gradients, images, labels)

    def accuracy(self, images, labels, step, kernels, biases, own=None):
        """Mean loss and accuracy after a step against `pooled @ kernel + bias + own`."""
        import numpy as np

        if own is None:
            own = {k: np.zeros((len(labels), b.shape[-1]), "float32") for k, b in biases.items()}

        def run(images, labels, own):
            return self._moved(images, labels, np.float32(step), kernels, biases, own)

        found = _in_batches(run, images, labels, own)
        return {name: float(np.mean(found[name])) for name in ("loss", "right")}


def _in_batches(function, *arrays):
    """`function` of nested arrays with images as first axis, in batches, put together again."""
    import numpy as np
    import tensorflow as tf

    parts = []
    for start in range(0, len(arrays[0]), BATCH):
        chosen = slice(start, start + BATCH)
        batch = [tf.nest.map_structure(operator.itemgetter(chosen), a) for a in arrays]
        parts.append(tf.nest.map_structure(np.asarray, function(*batch)))
    return tf.nest.map_structure(lambda *x: np.concatenate(x), *parts)


def fit_routers(found, on_test):
    """What a linear router, and gradient boosted trees, can predict of the images' gradients.

    Args:
        found: of `Headroom.gradients` on the images to fit.
        on_test: likewise, of the images to predict for.

    Returns:
        Dict: `kernels`, `biases` and `means` (of the gradients), dicts by (stage, j); and by
        source the sums of squares on the test images: `variance` about those means, `residual` of
        the linear prediction, `residual_of_trees`.
    """
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV

    names = ("kernels", "biases", "means", "variance", "residual", "residual_of_trees")
    fitted = {name: {} for name in names}
    seen, seen_on_test = [], []
    for key, gradient in found["gradient"].items():
        pooled, there = found["pooled"][key], on_test["gradient"][key]
        ridge = RidgeCV(np.logspace(-4, 4, 9)).fit(pooled, gradient)
        kernel = np.float32(np.reshape(ridge.coef_, (gradient.shape[1], -1)).T)
        bias = np.float32(np.reshape(ridge.intercept_, (1, -1)))
        mean = gradient.mean(axis=0, keepdims=True)
        predicted = on_test["pooled"][key] @ kernel + bias
        seen.append(pooled)
        seen_on_test.append(on_test["pooled"][key])
        by_trees = []
        for k in range(gradient.shape[1]):
            trees = HistGradientBoostingRegressor(early_stopping=True, random_state=0)
            trees.fit(np.concatenate(seen, axis=1), gradient[:, k])
            by_trees.append(trees.predict(np.concatenate(seen_on_test, axis=1)))
        values = (
            *(kernel, bias, mean, float(np.sum((there - mean) ** 2))),
            float(np.sum((there - predicted) ** 2)),
            float(np.sum((there - np.stack(by_trees, axis=1)) ** 2)),
        )
        for name, value in zip(names, values, strict=True):
            fitted[name][key] = value
    return fitted


def measure(job, images):
    """The figures of one finished run; see the module.

    Args:
        job: a `benchmarks.accuracy_studies.Job` whose weights are in its workdir.
        images: file of `benchmarks.accuracy_runs.save_images`.

    Returns:
        Dict: the run's identity, `accuracy` and `loss` on the test images (dicts of `own`,
        `shared`, `linear`, `oracle`), `steps`, `explained` and `explained_by_trees` (of the
        variance over all edges), `explained_by_source`, dict of source to R^2 (linear).
    """
    import numpy as np

    from train.classification.model import create_model

    recipe = dataclasses.replace(job.recipe, dtype="float32")
    data = load_images(job.recipe, images)
    model = create_model(recipe, len(data.class_names))
    model.load_weights(job.workdir / WEIGHTS)
    network = Headroom(model)
    order = np.random.default_rng(0).permutation(len(data.train.labels))[: FIT + CHOOSE]

    def part(split, chosen):
        return model.preprocessing(split.images[chosen]).numpy(), split.labels[chosen]

    fit = part(data.train, order[: FIT * len(order) // (FIT + CHOOSE)])
    choose = part(data.train, order[len(fit[1]) :])
    test = part(data.test, slice(None))
    found, on_test, on_choose = (network.gradients(*x) for x in (fit, test, choose))
    fitted = fit_routers(found, on_test)
    flat = {key: np.zeros_like(kernel) for key, kernel in fitted["kernels"].items()}
    nothing = {key: np.zeros_like(mean) for key, mean in fitted["means"].items()}
    moves = {
        "own": (flat, nothing, None, None),
        "shared": (flat, fitted["means"], None, None),
        "linear": (fitted["kernels"], fitted["biases"], None, None),
        "oracle": (flat, nothing, on_choose["gradient"], on_test["gradient"]),
    }
    results = {"accuracy": {}, "loss": {}, "steps": {}}
    for name, (kernel, bias, own_choose, own_test) in moves.items():
        steps = STEPS if name != "own" else (0.0,)
        losses = [network.accuracy(*choose, s, kernel, bias, own_choose)["loss"] for s in steps]
        step = steps[int(np.argmin(losses))]
        there = network.accuracy(*test, step, kernel, bias, own_test)
        results["steps"][name] = step
        results["accuracy"][name] = there["right"]
        results["loss"][name] = there["loss"]
    variance, residual = fitted["variance"], fitted["residual"]
    total = sum(variance.values())
    return {
        **job.identity,
        **results,
        "explained": 1 - sum(residual.values()) / total,
        "explained_by_trees": 1 - sum(fitted["residual_of_trees"].values()) / total,
        "explained_by_source": {f"{s}/{j}": 1 - residual[s, j] / variance[s, j] for s, j in flat},
    }


def table(rows):
    """Lines of a Markdown table: means over runs, and what the predictions explain."""
    import numpy as np

    lines = ["| edge weights | accuracy, % | loss |", "|---|---|---|"]
    for name in rows[0]["accuracy"]:
        means = [np.mean([row[key][name] for row in rows]) for key in ("accuracy", "loss")]
        lines.append(f"| {name} | {100 * means[0]:.2f} | {means[1]:.4f} |")
    lines.append("")
    for key, by in (("explained", "a router"), ("explained_by_trees", "boosted trees")):
        values = [100 * row[key] for row in rows]
        lines.append(
            f"Variance of the images' gradients that {by} can explain: {np.mean(values):.2f} % "
            f"({min(values):.2f} to {max(values):.2f})."
        )
    return lines


def main(argv=None):
    """Measures every finished run of the wiring that has not been."""
    parser = finished_runs.make_parser("headroom", __doc__, OUTPUT)
    parser.add_argument("--wiring", default="learned", choices=("learned", "dynamic"))
    args = parser.parse_args(argv)
    finished_runs.run("headroom", args, args.wiring, measure, table)


if __name__ == "__main__":
    main()

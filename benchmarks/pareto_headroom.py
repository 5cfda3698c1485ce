"""Could routers choose better, with the blocks of a run of `benchmarks.pareto` as they are?

Each block that can be passed by is flipped for all images that judged the run: left out where it is
taken, taken where it is not. So `gain` of a block and an image is known: the loss that the flip
takes away. What a router could know of it is predicted from the features that reach the block,
pooled as a router's are, by ridge regression and by boosted trees. They are fitted on half of the
images and judged on the other half, and the other way round. Nothing is chosen by it. Of a run:

- `explained`: by `ridge` and `trees`, the part of the variance of all gains that is predicted (R^2
  about the mean of each block; 0 is what one choice for all images has).
- `swaps`: `accuracy` and `loss` of the images where k = 1, 2, 4 taken blocks are left out for as
  many that were not taken, those of the largest gain: `shared`, on average over the images that are
  fitted on, the same for all; by `ridge` and `trees`; and by the image's own gain, its label known
  (`oracle`). `own` is the network as it is. Gains are added up, as if blocks knew nothing of one
  another.
"""

from benchmarks.pareto_finished import BATCH, Finished
from benchmarks.pareto_table import DECIDING

SWAPS = (1, 2, 4)
ROWS = ("shared", "ridge", "trees", "oracle")


class Flips:
    """A trained network of paths, run with given choices.

    Args:
        model: a classifier of wiring `path` or `learned_path`, of one graph a stage.
    """

    def __init__(self, model):
        import tensorflow as tf

        from dgnet_keras.layers.graph import GraphStage

        @tf.function(reduce_retracing=True)
        def answer(x, taken):
            column, pooled = 0, []
            for layer in model.layers[1:]:
                if not isinstance(layer, GraphStage):
                    x = layer(x, training=False)
                    continue
                x = layer.blocks[0](x, training=False)
                for block in layer.blocks[1:]:
                    pooled.append(tf.reduce_mean(tf.cast(x, tf.float32), axis=(1, 2)))
                    x = tf.where(taken[:, column, None, None, None], block(x, training=False), x)
                    column += 1
            return x, pooled

        self._answer = answer

    def losses(self, images, labels, taken):
        """Of images with these choices.

        Args:
            images: preprocessed, (images, height, width, channels).
            labels: int (images,).
            taken: bool (images, blocks).

        Returns:
            Losses, (images,), and whether the images are recognised; list of the pooled features
            that reach each block, (images, channels).
        """
        import numpy as np
        from scipy import special

        parts = []
        for k in range(0, len(images), BATCH):
            logits, pooled = self._answer(images[k : k + BATCH], taken[k : k + BATCH])
            parts.append((logits.numpy(), [p.numpy() for p in pooled]))
        logits = np.concatenate([logits for logits, _ in parts])
        losses = -special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
        pooled = [np.concatenate(column) for column in zip(*(p for _, p in parts), strict=True)]
        return losses, logits.argmax(axis=1) == labels, pooled


def swap(taken, gains, count):
    """Choices with `count` blocks less and as many others more, those of the largest gain.

    Args:
        taken: bool (images, blocks).
        gains: of flipping each, (images, blocks).
        count: of an image; fewer where it has fewer of one kind.

    Returns:
        bool (images, blocks).
    """
    import numpy as np

    counts = np.minimum(count, np.minimum(taken.sum(axis=1), (~taken).sum(axis=1)))
    flipped = np.zeros_like(taken)
    for kind in (taken, ~taken):
        rank = np.argsort(np.argsort(-np.where(kind, gains, -np.inf), axis=1), axis=1)
        flipped |= kind & (rank < counts[:, None])
    return taken ^ flipped


def predicted(gains, pooled, folds, make):
    """Each block's gain, predicted from what reaches it by a model fitted on the other fold.

    Args:
        gains: (images, blocks).
        pooled: list of (images, channels), one a block.
        folds: int (images,), 0 or 1.
        make: function that makes a regressor of scikit-learn.

    Returns:
        (images, blocks).
    """
    import numpy as np

    found = np.empty_like(gains)
    for fold in (0, 1):
        fit, judged = folds != fold, folds == fold
        for block, features in enumerate(pooled):
            model = make().fit(features[fit], gains[fit, block])
            found[judged, block] = model.predict(features[judged])
    return found


def is_measured(job):
    """Whether it is one of the runs that decide, with paths."""
    return job.recipe.macs_target == DECIDING


def measure(job, images):
    """The figures of one finished run; see the module.

    Args:
        job: of `benchmarks.pareto.plan`, with its weights in its workdir.
        images: file of `benchmarks.accuracy_runs.save_images`.
    """
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    run = Finished(job, images, dtype="float32")  # gains are small differences
    inputs, labels, taken = run.inputs, run.labels, run.taken
    flips = Flips(run.model)
    own, right, pooled = flips.losses(inputs, labels, taken)
    gains = np.empty(taken.shape)
    for block in range(taken.shape[1]):
        other = taken.copy()
        other[:, block] ^= True
        gains[:, block] = own - flips.losses(inputs, labels, other)[0]
    folds = np.random.default_rng(0).permutation(len(labels)) % 2
    means = np.stack([gains[folds != fold].mean(axis=0) for fold in (0, 1)])[folds]
    makers = {
        "ridge": lambda: make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 6, 7))),
        "trees": lambda: HistGradientBoostingRegressor(
            learning_rate=0.03, early_stopping=True, random_state=0
        ),
    }
    known = {name: predicted(gains, pooled, folds, make) for name, make in makers.items()}
    rest = np.square(gains - means).sum()
    explained = {
        name: float(1 - np.square(gains - values).sum() / rest) for name, values in known.items()
    }
    known |= {"shared": means, "oracle": gains}
    swaps = {"own": {"0": {"accuracy": float(right.mean()), "loss": float(own.mean())}}}
    for name in ROWS:
        swaps[name] = {}
        for count in SWAPS:
            losses, right, _ = flips.losses(inputs, labels, swap(taken, known[name], count))
            found = {"accuracy": float(right.mean()), "loss": float(losses.mean())}
            swaps[name][str(count)] = found
    return {"explained": explained, "swaps": swaps, "gain_std": float(gains.std())}


def table(rows):
    """Lines of a Markdown table: means over the runs, by wiring."""
    import numpy as np

    lines = [
        "| paths of | blocks swapped by | swaps | accuracy, % | loss |",
        "|---|---|---|---|---|",
    ]
    explained = []
    for wiring in sorted({row["wiring"] for row in rows}):
        own = [row for row in rows if row["wiring"] == wiring]
        for name, by_count in own[0]["swaps"].items():
            for count in by_count:
                found = [row["swaps"][name][count] for row in own]
                accuracy, loss = (np.mean([f[key] for f in found]) for key in ("accuracy", "loss"))
                lines.append(
                    f"| `{wiring}` | {name} | {count} | {100 * accuracy:.2f} | {loss:.4f} |"
                )
        parts = [
            f"{100 * np.mean([row['explained'][name] for row in own]):.2f} % by {name}"
            for name in own[0]["explained"]
        ]
        explained.append(f"`{wiring}`: {' and '.join(parts)}")
    return [*lines, "", f"Variance of the gains that is predicted: {'; '.join(explained)}."]

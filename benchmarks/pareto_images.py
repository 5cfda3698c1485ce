"""Who takes what, in finished runs of `benchmarks.pareto`: which images take few blocks, and what
another image's path costs them.

Each network is at its calibrated threshold, on the images that judged it, beside the static network
that it learned from. Nothing is chosen by it. Of a run:

- `accuracy`: with the `own` paths, those of another image (`other_image`, 5 times), of another of
  its class (`other_image_of_class`) and of another of any other class (`other_class`), and the
  `most_frequent_path` for everyone; `changed`: share of the predictions that this changes;
  `most_frequent_share`: of multiply-adds, of that path.
- `doubt`: rank correlation (Spearman) of an image's share of multiply-adds with the static
  network's `confidence`, its `loss` and whether it is in `error`.
- `quarters`: from the cheapest quarter of the images to the dearest, mean `share`, and accuracy of
  the `static` network and the `own`.
- `between_classes`: of the variance of the `share`, and of the choices of all `blocks`, the part
  that lies between classes: 1 where the class decides, 0 where it says nothing.
- `by_class`: mean share of each class.
- `connectivity`: `path_diversity` of all images.
"""

from benchmarks.ablation import DRAWS, substitutes
from benchmarks.pareto_finished import BATCH, Finished
from benchmarks.pareto_table import DECIDING

NAMES = {
    "own": "its own",
    "other_image": "another image's",
    "other_image_of_class": "another's of its class",
    "other_class": "another's of another class",
    "most_frequent_path": "the most frequent",
}


def of_another_class(labels, rng):
    """An order of the images in which each has one of another class in its place.

    Args:
        labels: int (images,); no class may hold more than half of them.
        rng: NumPy random generator.

    Returns:
        int (images,), a permutation.
    """
    import numpy as np

    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    largest = int(np.bincount(labels).max())
    if 2 * largest > len(labels):
        raise ValueError(
            f"No class may hold more than half of the images. Received: {largest} of {len(labels)}"
        )
    # In order of class, so many places on is always another class.
    chosen = np.empty_like(order)
    chosen[order] = np.roll(order, largest)
    return chosen


def doubt_figures(shares, static_logits, labels):
    """`doubt` of the module, and the columns it is made of.

    Args:
        shares: of multiply-adds, (images,).
        static_logits: of the static network, (images, classes).
        labels: int (images,).

    Returns:
        Dict of `confidence`, `loss`, `error` to the rank correlation with the share; None where
        one of the two does not vary.
    """
    import numpy as np
    from scipy import special, stats

    log_p = special.log_softmax(static_logits.astype("float64"), axis=1)
    columns = {
        "confidence": np.exp(log_p.max(axis=1)),
        "loss": -log_p[np.arange(len(labels)), labels],
        "error": (log_p.argmax(axis=1) != labels).astype(float),
    }
    return {
        name: float(stats.spearmanr(shares, column).statistic)
        if np.ptp(column) and np.ptp(shares)
        else None
        for name, column in columns.items()
    }


def quarters(shares, correct):
    """Means over the quarters of the images, the cheapest first.

    Args:
        shares: of multiply-adds, (images,); ties are broken by the images' order.
        correct: dict of name to bool (images,).

    Returns:
        List of 4 dicts: `share`, and each name's mean.
    """
    import numpy as np

    parts = np.array_split(np.argsort(shares, kind="stable"), 4)
    return [
        {"share": float(shares[part].mean())}
        | {name: float(values[part].mean()) for name, values in correct.items()}
        for part in parts
    ]


def between_classes(values, labels):
    """Part of the variance of columns that lies between classes, over all columns: a float.

    Args:
        values: (images, columns).
        labels: int (images,).

    Returns:
        In [0, 1]; None where nothing varies.
    """
    import numpy as np

    values = np.asarray(values, "float64")
    total, mean = values.var(axis=0).sum(), values.mean(axis=0)
    if total < 1e-12:
        return None
    between = 0.0
    for label in np.unique(labels):
        own = values[labels == label]
        between += len(own) / len(values) * np.square(own.mean(axis=0) - mean).sum()
    return float(between / total)


def is_measured(job):
    """Whether it is one of the runs that decide, whose images have paths of their own."""
    return job.recipe.wiring == "path" and job.recipe.macs_target == DECIDING


def measure(job, images):
    """The figures of one finished run; see the module.

    Args:
        job: of `benchmarks.pareto.plan`, with its weights in its workdir.
        images: file of `benchmarks.accuracy_runs.save_images`.
    """
    import numpy as np

    import dgnet_keras as dg

    run = Finished(job, images)
    labels, adjacency, shares = run.labels, run.adjacency, run.shares
    rewired = dg.with_adjacency(run.model)

    def predict(given):
        inputs = {"images": run.inputs, **given}
        return rewired.predict(inputs, batch_size=BATCH, verbose=0).argmax(axis=1)

    own = predict(adjacency)
    accuracy, changed = {"own": [float(np.mean(own == labels))]}, {}
    rng = np.random.default_rng(0)
    others = [("other_class", of_another_class(labels, rng)) for _ in range(DRAWS)]
    swaps = [(name, {k: v[order] for k, v in adjacency.items()}) for name, order in others]
    for name, given in (*substitutes(adjacency, labels, rng), *swaps):
        if name == "mean":  # no path
            continue
        answers = predict(given)
        accuracy.setdefault(name, []).append(float(np.mean(answers == labels)))
        changed.setdefault(name, []).append(float(np.mean(answers != own)))
    static = run.predict(run.static())
    right = {"static": static.argmax(axis=1) == labels, "own": own == labels}
    return {
        "share_of_macs": float(shares.mean()),
        "share_std": float(shares.std()),
        "accuracy": accuracy,
        "changed": changed,
        "most_frequent_share": float(shares[dg.connectivity.paths(adjacency)[0] == 0].mean()),
        "doubt": doubt_figures(shares, static, labels),
        "quarters": quarters(shares, right),
        "between_classes": {
            "share": between_classes(shares[:, None], labels),
            "blocks": between_classes(run.taken, labels),
        },
        "by_class": {
            name: float(shares[labels == k].mean()) for k, name in enumerate(run.class_names)
        },
        "connectivity": dg.connectivity.path_diversity(adjacency, labels),
    }


def draw(job, images, count=10):
    """The cheapest and dearest images of a finished run, a matplotlib `Figure`."""
    from dgnet_keras.visualize import plot_cheap_and_dear

    run = Finished(job, images)
    return plot_cheap_and_dear(
        run.pixels,
        run.shares,
        run.labels,
        adjacency=run.adjacency,
        class_names=run.class_names,
        count=count,
    )


def table(rows):
    """Lines of Markdown: a table of the paths swapped, one of quarters, and sentences."""
    import numpy as np

    lines = ["| paths | accuracy, % | lost, points | predictions changed |", "|---|---|---|---|"]
    own = _means(rows, "own")
    for name, text in NAMES.items():
        cells = [text, f"{_means(rows, name).mean():.2f}", "", ""]
        if name != "own":
            cells[2] = _interval(own - _means(rows, name))
            changed = np.mean([np.mean(row["changed"][name]) for row in rows])
            cells[3] = f"{100 * changed:.2f} %"
        lines.append(f"| {' | '.join(cells)} |")
    most_frequent = np.mean([row["most_frequent_share"] for row in rows])
    lines += [
        "",
        "| quarter of the images | share of MACs | static, % | paths, % |",
        "|---|---|---|---|",
    ]
    for k, name in enumerate(("cheapest", "second", "third", "dearest")):
        means = {
            key: np.mean([row["quarters"][k][key] for row in rows])
            for key in ("share", "static", "own")
        }
        lines.append(
            f"| {name} | {means['share']:.3f} | {100 * means['static']:.2f} "
            f"| {100 * means['own']:.2f} |"
        )
    doubt = {name: np.mean([row["doubt"][name] for row in rows]) for name in rows[0]["doubt"]}
    parts = {
        name: 100 * np.mean([row["between_classes"][name] for row in rows])
        for name in rows[0]["between_classes"]
    }
    classes = {name: np.mean([r["by_class"][name] for r in rows]) for name in rows[0]["by_class"]}
    order = sorted(classes, key=classes.get)
    lines += [
        "",
        f"Rank correlation of an image's share with the static network's confidence "
        f"{doubt['confidence']:+.2f}, loss {doubt['loss']:+.2f}, error {doubt['error']:+.2f}.",
        f"Mean share {np.mean([row['share_of_macs'] for row in rows]):.3f}, its standard deviation "
        f"over images {np.mean([row['share_std'] for row in rows]):.3f}; the most frequent path's "
        f"share {most_frequent:.3f}.",
        f"Between classes lie {parts['share']:.0f} % of the variance of the share, and "
        f"{parts['blocks']:.0f} % of that of the blocks' choices.",
        f"Mean share by class: {', '.join(f'{name} {classes[name]:.3f}' for name in order)}.",
    ]
    return lines


def _means(rows, name):
    import numpy as np

    return np.array([100 * np.mean(row["accuracy"][name]) for row in rows])


def _interval(values):
    """Mean and, of several, 95 % t interval, as text."""
    from scipy import stats

    text = f"{values.mean():.2f}"
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        text += f" [{values.mean() - half:.2f}, {values.mean() + half:.2f}]"
    return text

"""Is the wiring of a trained network really instance-aware? Other connectivity, same weights.

python -m benchmarks.ablation [--study cifar10] [--workdir DIR] [--output FILE]

Takes the finished `dynamic` runs of `benchmarks.accuracy` (their weights are in its workdir) and
evaluates each on the test images with

- `own`: the edges that the routers give each image (the accuracy of the run's row);
- `other_image`: those of another image, drawn at random without putting back (5 times);
- `other_image_of_class`: the same, among the images of its class;
- `mean`: the mean of all images' edge weights, for every image (closed edges as 0);
- `most_frequent_path`: the mean over the images on the most frequent path, whose open edges it
  has.

Also what the connectivity of all test images is like (`path_diversity`), and how many predictions
change. One JSON object a run.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import finished_runs
from benchmarks.accuracy_runs import load_images
from benchmarks.accuracy_studies import WEIGHTS
from benchmarks.measure import ROOT

OUTPUT = ROOT / "benchmarks" / "results" / "ablation.jsonl"
DRAWS = 5


def substitutes(adjacency, labels, rng):
    """Connectivity to evaluate in place of the images' own.

    Args:
        adjacency: dict of stage name to array (images, N + 1, N + 1).
        labels: int (images,).
        rng: NumPy random generator.

    Yields:
        Tuples of a name and an adjacency like the one given.
    """
    import numpy as np

    from dgnet_keras import connectivity

    images = len(labels)
    for _ in range(DRAWS):
        order = rng.permutation(images)
        yield "other_image", {k: v[order] for k, v in adjacency.items()}
    for _ in range(DRAWS):
        order = np.arange(images)
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            order[own] = rng.permutation(own)
        yield "other_image_of_class", {k: v[order] for k, v in adjacency.items()}

    def everywhere(chosen):
        means = {k: v[chosen].mean(axis=0) for k, v in adjacency.items()}
        return {k: np.broadcast_to(mean, adjacency[k].shape) for k, mean in means.items()}

    yield "mean", everywhere(slice(None))
    yield "most_frequent_path", everywhere(connectivity.paths(adjacency)[0] == 0)


def ablate(job, images):
    """The figures of one finished run; see the module.

    Args:
        job: a `benchmarks.accuracy_studies.Job` whose weights are in its workdir.
        images: file of `benchmarks.accuracy_runs.save_images`.

    Returns:
        Dict: the run's identity, `accuracy` (name to a list of accuracies), `changed` (name to
        the share of predictions that are not those with the own edges, a list) and
        `connectivity`.
    """
    import numpy as np

    import dgnet_keras as dg
    from train.classification.model import create_model

    data = load_images(job.recipe, images)
    model = create_model(job.recipe, len(data.class_names))
    model.load_weights(job.workdir / WEIGHTS)
    inputs = model.preprocessing(data.test.images).numpy()
    labels = data.test.labels
    adjacency = dg.adjacency(model, inputs, batch_size=500)
    rewired = dg.with_adjacency(model)

    def predict(given):
        answers = rewired.predict({"images": inputs, **given}, batch_size=500, verbose=0)
        return answers.argmax(axis=1)

    own = predict(adjacency)
    found = {"own": [float(np.mean(own == labels))]}
    changed = {}
    for name, given in substitutes(adjacency, labels, np.random.default_rng(0)):
        answers = predict(given)
        found.setdefault(name, []).append(float(np.mean(answers == labels)))
        changed.setdefault(name, []).append(float(np.mean(answers != own)))
    return {
        **job.identity,
        "accuracy": found,
        "changed": changed,
        "connectivity": dg.connectivity.path_diversity(adjacency, labels),
    }


def table(rows):
    """Lines of a Markdown table: mean loss of accuracy over runs, and its 95 % t interval."""
    import numpy as np
    from scipy import stats

    lines = [
        "| edges | accuracy, % | lost, points | predictions changed |",
        "|---|---|---|---|",
    ]
    for name in rows[0]["accuracy"]:
        means = np.array([100 * np.mean(row["accuracy"][name]) for row in rows])
        cells = [name.replace("_", " "), f"{means.mean():.2f}", "", ""]
        if name != "own":
            lost = np.array([100 * row["accuracy"]["own"][0] for row in rows]) - means
            cells[2] = f"{lost.mean():.2f}"
            if len(rows) > 1:
                half = stats.t.ppf(0.975, len(rows) - 1) * lost.std(ddof=1) / np.sqrt(len(rows))
                cells[2] += f" [{lost.mean() - half:.2f}, {lost.mean() + half:.2f}]"
            changed = np.mean([row["changed"][name] for row in rows])
            cells[3] = f"{100 * changed:.2f} %"
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(argv=None):
    """Ablates every finished dynamic run that has not been; shows the table."""
    args = finished_runs.make_parser("ablation", __doc__, OUTPUT).parse_args(argv)
    finished_runs.run("ablation", args, "dynamic", ablate, table)


if __name__ == "__main__":
    main()

"""A cascade: the static ResNet-56 is asked too, about the images that a cheaper network doubts.

Every image goes through the network of a run. The share `again` of the images, those whose largest
probability is lowest, goes through the static ResNet-56 of the same seed, too. What counts then is
the mean of both networks' probabilities (`mean`), as of `dgnet_keras.cascade`, or the static
network's alone (`static`). An image that is asked about twice costs both. No label is used, and
nothing is chosen by it.
"""

from benchmarks.pareto_finished import Finished
from benchmarks.pareto_table import BASE

AGAIN = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)


def is_measured(job):
    """Whether it is a run that is cheaper than the static ResNet-56."""
    return job.identity["model"] != BASE or job.identity["wiring"] != "chain"


def looks(first, second, shares, labels):
    """Accuracy and cost by the share of the images that is asked twice.

    Args:
        first: probabilities of the cheaper network, (images, classes).
        second: likewise, of the static ResNet-56.
        shares: of its multiply-adds that the cheaper network computes, (images,).
        labels: int (images,).

    Returns:
        List of dicts: `again`, `share_of_macs`, and the accuracies `mean` and `static`.
    """
    import numpy as np

    order = np.argsort(first.max(axis=1), kind="stable")
    rows = []
    for again in AGAIN:
        doubted = order[: round(again * len(labels))]
        row = {"again": again, "share_of_macs": float(shares.mean() + len(doubted) / len(labels))}
        for name, answers in (("mean", first + second), ("static", second)):
            found = first.copy()
            found[doubted] = answers[doubted]
            row[name] = float(np.mean(found.argmax(axis=1) == labels))
        rows.append(row)
    return rows


def measure(job, images):
    """The figures of one finished run; see the module.

    Args:
        job: of `benchmarks.pareto.plan`, with its weights in its workdir.
        images: file of `benchmarks.accuracy_runs.save_images`.
    """
    import numpy as np
    from scipy import special

    from dgnet_keras.complexity import model_costs

    run = Finished(job, images)
    static = run.static()
    first, second = (special.softmax(run.predict(n), axis=1) for n in (run.model, static))
    return {
        "static": float(np.mean(second.argmax(axis=1) == run.labels)),
        "looks": looks(first, second, run.macs / model_costs(static).static, run.labels),
    }


def table(rows):
    """Lines of a Markdown table: means over the runs of a network, wiring, target and teacher."""
    import numpy as np

    lines = [
        "| first network | learns from | target | seeds | twice | multiply-adds | accuracy, % |"
    ]
    lines += [f"|{'---|' * 7}"]
    groups = {}
    for row in rows:
        key = row["model"], row["wiring"], row["macs_target"], row["teacher"]
        groups.setdefault(key, []).append(row)
    for (model, wiring, target, teacher), own in groups.items():
        taught = "labels" if teacher is None else f"`{teacher}` too"
        for k, again in enumerate(AGAIN):
            share, accuracy = (
                np.mean([row["looks"][k][key] for row in own]) for key in ("share_of_macs", "mean")
            )
            lines.append(
                f"| `{model}`, `{wiring}` | {taught} | {target or ''} | {len(own)} "
                f"| {100 * again:.0f} % "
                f"| {share:.3f} | {100 * accuracy:.2f} |"
            )
    return lines

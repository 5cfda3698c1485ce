"""Rows of `benchmarks.pareto`: summarised as a table, and drawn.

Multiply-adds and times are over those of the static ResNet-56.
"""

BASE = "resnet56_cifar"
SMALLER = ("resnet32_cifar", "chain", None, None)
TAUGHT = (*SMALLER[:3], BASE)
DECIDING = 0.55  # target of the comparison: the share of the static ResNet-32


def summarize(rows, times=()):
    """A table of the rows of one schedule.

    Args:
        rows: of `benchmarks.pareto`, that agree in all but network, wiring, target, teacher and
            seed.
        times: rows of its `--time`.

    Returns:
        List of dicts, one a network, wiring, target and teacher, the most multiply-adds first:
        `key`, these four; `seeds`; `accuracy` (mean) and `std`, in percent; `share` (mean);
        `paths`, distinct ones (mean), None of static networks; `time`, dict of batch to the median
        over seeds; `curve`, list of (share, accuracy) of the first seed; `minus`, dict of
        `"smaller"` (static ResNet-32), `"taught"` (the same, distilled from the static ResNet-56)
        and `"control"` (`learned_path` of the same network and target) to (seeds in common, mean,
        half-width of the 95 % t interval) of the paired difference, in percentage points. Empty
        without a row of the static ResNet-56.
    """
    groups = {}
    for row in rows:
        groups.setdefault(_key(row), {})[row["seed"]] = row
    base = next((row["macs"] for row in rows if _is_static(row) and row["model"] == BASE), None)
    if base is None:
        return []
    table = []
    for key, by_seed in groups.items():
        model, wiring, target, teacher = key
        accuracy = [100 * row["test_accuracy"] for row in by_seed.values()]
        static = next(iter(by_seed.values())).get("static_macs")
        first = by_seed[min(by_seed)]
        control = (model, "learned_path", target, teacher)
        references = {"smaller": SMALLER, "taught": TAUGHT, "control": control}
        table.append(
            {
                "key": key,
                "seeds": len(by_seed),
                "accuracy": _mean(accuracy),
                "std": _deviation(accuracy),
                "share": _mean([_macs(row) / base for row in by_seed.values()]),
                "paths": None
                if static is None
                else _mean([row["distinct_paths"] for row in by_seed.values()]),
                "time": _times([row for row in times if _key(row) == key]),
                "curve": [
                    (point["share_of_macs"] * static / base, 100 * point["accuracy"])
                    for point in first.get("curve", ())
                ],
                "minus": {
                    name: _paired(by_seed, groups[other])
                    for name, other in references.items()
                    if wiring != "chain" and other != key and other in groups
                },
            }
        )
    return sorted(table, key=lambda row: (row["key"][1], -row["share"]))


def _key(row):
    return row["model"], row["wiring"], row["macs_target"], row["teacher"]


def _is_static(row):
    return row["wiring"] == "chain"


def _macs(row):
    """What an image computes, on average."""
    return row["macs"] if _is_static(row) else row["share_of_macs"] * row["static_macs"]


def _mean(values):
    return sum(values) / len(values)


def _deviation(values):
    import statistics

    return statistics.stdev(values) if len(values) > 1 else None


def _times(rows):
    import statistics

    batches = rows[0]["time"] if rows else {}
    return {batch: statistics.median(row["time"][batch] for row in rows) for batch in batches}


def _paired(by_seed, others):
    """Of a difference: seeds in common, mean, half-width of the 95 % interval (None of one)."""
    from scipy import stats

    common = sorted(set(by_seed) & set(others))
    found = [100 * (by_seed[s]["test_accuracy"] - others[s]["test_accuracy"]) for s in common]
    if not found:
        return 0, None, None
    if len(found) == 1:
        return 1, found[0], None
    half = stats.t.ppf(0.975, len(found) - 1) * _deviation(found) / len(found) ** 0.5
    return len(found), _mean(found), float(half)


def markdown(table):
    """The lines of a Markdown table of `summarize`."""
    lines = [
        "| network | wiring | learns from | target | seeds | accuracy, % | multiply-adds "
        "| distinct paths | minus static ResNet-32 | minus the same, distilled "
        "| minus `learned_path` | time, batch 1 | time, batch 128 |",
        f"|{'---|' * 13}",
    ]
    for row in table:
        model, wiring, target, teacher = row["key"]
        spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
        cells = [
            f"`{model}`",
            f"`{wiring}`",
            "labels" if teacher is None else f"`{teacher}` too",
            "" if target is None else str(target),
            str(row["seeds"]),
            f"{row['accuracy']:.2f}{spread}",
            f"{row['share']:.3f}",
            "" if row["paths"] is None else f"{row['paths']:.0f}",
            *(_difference(row["minus"].get(name)) for name in ("smaller", "taught", "control")),
            *(f"{row['time'][batch]:.2f}" if row["time"] else "" for batch in ("1", "128")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _difference(entry):
    if entry is None or entry[1] is None:
        return ""
    count, mean, half = entry
    interval = "" if half is None else f" [{mean - half:+.2f}, {mean + half:+.2f}]"
    return f"{mean:+.2f}{interval} ({count})"


def cascades(rows):
    """What a cascade with the static ResNet-56 gives, of rows of `--measure cascade`.

    Returns:
        Dict of network, wiring, target and teacher to a list of (multiply-adds, accuracy in
        percent), means over the seeds, by the share of the images that is asked about twice.
    """
    groups = {}
    for row in rows:
        groups.setdefault(_key(row), []).append(row["looks"])
    return {
        key: [
            (_mean([p["share_of_macs"] for p in points]), 100 * _mean([p["mean"] for p in points]))
            for points in zip(*seeds, strict=True)
        ]
        for key, seeds in groups.items()
    }


def plot(table, cascade_rows=()):
    """Accuracy by multiply-adds and, where times are known, by time at batch 1 and 128.

    Args:
        table: of `summarize`.
        cascade_rows: of `--measure cascade`.

    Returns:
        A matplotlib `Figure`. Thin lines are the dial: the same weights at other thresholds. Dashed
        lines are cascades.
    """
    from dgnet_keras.drawing import new_figure

    panels = {"multiply-adds": [(row["share"], row) for row in table]}
    for batch in ("1", "128"):
        found = [(row["time"][batch], row) for row in table if row["time"]]
        panels |= {f"time at batch {batch}": found} if found else {}
    names = {"chain": "static", "path": "paths", "learned_path": "paths, the same for all images"}
    figure = new_figure(1 + 4 * len(panels), 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    colors = {wiring: f"C{number}" for number, wiring in enumerate(names)}
    for (_, wiring, _, _), points in cascades(cascade_rows).items():
        axes[0].plot(*zip(*points, strict=True), "--.", color=colors[wiring], lw=1, ms=4)
    for axis, (label, points) in zip(axes, panels.items(), strict=True):
        for wiring, name in names.items():
            own = [(x, row) for x, row in points if row["key"][1] == wiring]
            color = colors[wiring]
            axis.errorbar(
                [x for x, _ in own],
                [row["accuracy"] for _, row in own],
                [row["std"] or 0 for _, row in own],
                fmt="o-" if wiring == "chain" else "o",
                color=color,
                label=name,
            )
            for _, row in own if axis is axes[0] else ():
                axis.plot(
                    [x for x, _ in row["curve"]],
                    [y for _, y in row["curve"]],
                    color=color,
                    linewidth=0.7,
                )
        axis.set(xlabel=f"{label} over static ResNet-56's", ylabel="test accuracy, %")
        axis.legend(fontsize=8, loc="lower right")
    return figure

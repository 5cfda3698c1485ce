"""Plots of the tables of `benchmarks.speed`."""

import json

LABELS = {
    "dynamic": "dynamic",
    "dynamic_max6": "dynamic, max_nodes=6",
    "path": "paths, every node on",
    "keras_applications": "keras.applications",
    "keras_groups": "chain, Keras's Conv2D(groups)",
    "aggregate_xla": "aggregate, XLA",
    "multiply_add": "multiply-add chain",
    "add_n": "add_n, no weights",
}
COLORS = {
    "dynamic": "tab:blue",
    "dynamic_max6": "tab:green",
    "path": "tab:purple",
    "keras_applications": "tab:orange",
    "keras_groups": "tab:red",
}
MODES = {
    "train": "training step",
    "inference": "inference",
    "sum": "weighted sum",
    "gradient": "gradient of the weighted sum",
}


def draw(table, rows, path):
    """Draws the rows of a table as a PNG.

    Args:
        table: of `speed.TABLES`.
        rows: list of rows, see `speed.measure_row`.
        path: of the file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figures = {"models": _models, "memory": _models, "nodes": _nodes, "aggregation": _aggregation}
    rows = _richest(rows)
    finish(figures.get(table, _grid)(plt, rows), rows, path)


def finish(figure, rows, path):
    """Writes below a figure what machine its rows are from, saves it as a PNG, and closes it."""
    import matplotlib.pyplot as plt

    first = rows[0]["environment"]
    commits = sorted({str(row["environment"]["commit"]) for row in rows})
    onednn = {True: "on", False: "off", None: "unknown"}[first["onednn"]]
    vector = {"avx512": " with AVX-512", "avx2": " with AVX2"}.get(first.get("vector"), "")
    figure.supxlabel(
        f"{first['cpu']}{vector}, {first['usable_cpus']} CPUs, TensorFlow {first['tensorflow']}, "
        f"oneDNN {onednn}, commit {', '.join(commits)}",
        fontsize=8,
        color="0.4",
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _richest(rows):
    """Of rows that differ in their contestants alone, the one with the most."""
    best = {}
    for row in rows:
        settings = {k: v for k, v in row["settings"].items() if k != "contestants"}
        key = json.dumps(settings, sort_keys=True)
        if key not in best or len(row["repeats"]) > len(best[key]["repeats"]):
            best[key] = row
    return list(best.values())


def _models(plt, rows):
    """A panel a measurement, bars by network: ratios to the static twin."""
    panels = {}
    for row in rows:
        settings = row["settings"]
        mode, batch = settings["mode"], settings["batch"]
        label = f"{settings['model']}\nbatch {batch}"
        if settings["measure"] == "cost":
            for key, name in (("peak_ratios", "peak memory"), ("compile_ratios", "compile time")):
                ratios = {k: {"median": v} for k, v in row[key].items()}
                panels.setdefault(f"{name}, {MODES[mode]}", []).append((label, ratios))
        else:
            name = MODES[mode]
            if mode == "inference" and batch != _table_batch(rows, settings["model"]):
                name = f"inference, batch {batch}"
            panels.setdefault(f"time, {name}", []).append((label, row["ratios"]))
    panels = dict(sorted(panels.items(), key=lambda item: _panel_order(item[0])))
    columns = 2
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(13, 3.4 * lines), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, bars) in zip(axes.flat, panels.items(), strict=False):
        _ratio_bars(axis, bars)
        axis.set_title(title)
    axes[0, 0].legend(fontsize=8)
    return figure


def _table_batch(rows, model):
    """The batch that the model's training step was measured at."""
    found = (row["settings"] for row in rows)
    trained = [s["batch"] for s in found if s["model"] == model and s["mode"] == "train"]
    return trained[0] if trained else None


def _panel_order(title):
    kinds = ("time", "peak memory", "compile time")
    return kinds.index(title.split(",")[0]), "training" not in title, len(title), title


def _ratio_bars(axis, bars):
    """Bars of ratios to `chain`, side by side; `bars` is a list of (label, ratios)."""
    drawn, highest = set(), 1.0
    for position, (_, ratios) in enumerate(bars):
        names = [key.removesuffix("/chain") for key in ratios if key.endswith("/chain")]
        for k, name in enumerate(names):
            found = ratios[f"{name}/chain"]
            x = position + 0.35 * (k - (len(names) - 1) / 2)
            label = None if name in drawn else LABELS[name]
            drawn.add(name)
            axis.bar(x, found["median"], 0.33, color=COLORS[name], label=label)
            top = _whisker(axis, x, found)
            highest = max(highest, top)
            _number(axis, x, top, f"{found['median']:.2f}")
    # Room for the numbers; a peer that is many times slower must not flatten the rest.
    if highest > 4:
        axis.set_yscale("log")
        axis.set_ylim(0.3, 2 * highest)
        axis.set_yticks([0.5, 1, 2, 5, 10, 20, 50, 100])
        axis.set_ylim(0.3, 2 * highest)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    else:
        axis.set_ylim(0, 1.15 * highest)
    axis.axhline(1, color="0.3", linewidth=1, linestyle="--")
    axis.set_xticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    axis.set_xlim(-0.6, len(bars) - 0.4)
    axis.set_ylabel("ratio to static twin")


def _number(axis, x, top, text):
    """Writes a number on a bar that ends at `top`."""
    axis.annotate(text, (x, top), (0, 2), textcoords="offset points", ha="center", fontsize=7)


def _whisker(axis, x, found):
    """Draws the quartiles, if there are any; the height that is taken."""
    low, high = found.get("quartiles", (found["median"], found["median"]))
    axis.plot([x, x], [low, high], color="0.2", linewidth=1.2)
    return max(high, found["median"])


def _ratio_line(axis, points, name):
    """A line of ratios with quartiles; `points` is a list of (x, ratio)."""
    xs = [x for x, _ in points]
    axis.plot(
        xs, [r["median"] for _, r in points], marker="o", color=COLORS.get(name), label=LABELS[name]
    )
    if all("quartiles" in r for _, r in points):
        low, high = zip(*(r["quartiles"] for _, r in points), strict=True)
        axis.fill_between(xs, low, high, color=COLORS.get(name), alpha=0.2, linewidth=0)


def _ratio_axis(axis, xs, xlabel, ylabel):
    axis.axhline(1, color="0.3", linewidth=1, linestyle="--")
    axis.set_xscale("log", base=2)
    axis.set_xticks(xs, [f"{x:g}" for x in xs])
    axis.minorticks_off()
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.grid(alpha=0.3)


def _nodes(plt, rows):
    """Training step, inference and peak memory against the number of nodes."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    panels = (
        ("time", "train", "training step", "time, ratio to static twin"),
        ("time", "inference", "inference", "time, ratio to static twin"),
        ("cost", "train", "training", "peak memory, ratio to static twin"),
    )
    for axis, (kind, mode, title, ylabel) in zip(axes, panels, strict=True):
        found = [
            (row["settings"]["nodes"], _line_ratios(row))
            for row in rows
            if (row["settings"]["measure"], row["settings"]["mode"]) == (kind, mode)
        ]
        for name in ("dynamic", "dynamic_max6"):
            points = [(x, r[f"{name}/chain"]) for x, r in found if f"{name}/chain" in r]
            if points:
                _ratio_line(axis, points, name)
        _ratio_axis(axis, [x for x, _ in found], "nodes of the stage", ylabel)
        axis.set_title(title)
    axes[0].legend()
    return figure


def _line_ratios(row):
    if row["settings"]["measure"] == "cost":
        return {key: {"median": value} for key, value in row["peak_ratios"].items()}
    return row["ratios"]


def _grid(plt, rows):
    """Ratios of training step and inference against image size or batch."""
    first = rows[0]["settings"]
    key = "size" if first["table"] == "sizes" else "batch"
    fixed = f"batch {first['batch']}" if key == "size" else f"{first['size']} pixels"
    figure, axis = plt.subplots(figsize=(7, 4.6), layout="constrained")
    for mode, color in (("train", "tab:blue"), ("inference", "tab:orange")):
        found = [row for row in rows if row["settings"]["mode"] == mode]
        xs = [row["settings"][key] for row in found]
        ratios = [row["ratios"]["dynamic/chain"] for row in found]
        low, high = zip(*(r["quartiles"] for r in ratios), strict=True)
        medians = [r["median"] for r in ratios]
        axis.plot(xs, medians, marker="o", color=color, label=MODES[mode])
        axis.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)
    xlabel = "image height and width, pixels" if key == "size" else "batch, images"
    _ratio_axis(axis, xs, xlabel, "time, ratio of dynamic to static twin")
    axis.set_title(f"{first['model']}, {fixed}")
    axis.legend()
    return figure


def _aggregation(plt, rows):
    """Bandwidth that each implementation reaches, by shape, and that of a sum of large arrays."""
    machine = next(row for row in rows if row["settings"]["measure"] == "bandwidth")
    figure, axes = plt.subplots(2, 1, figsize=(12, 8), layout="constrained")
    for axis, mode in zip(axes, ("sum", "gradient"), strict=True):
        found = [row for row in rows if row["settings"].get("mode") == mode]
        names = found[0]["settings"]["contestants"]
        for k, name in enumerate(names):
            xs = [i + 0.8 * ((k + 0.5) / len(names) - 0.5) for i in range(len(found))]
            heights = [row["gigabytes_per_second"][name] for row in found]
            axis.bar(xs, heights, 0.75 / len(names), label=LABELS.get(name, name), color=f"C{k}")
            for x, height, row in zip(xs, heights, found, strict=True):
                milliseconds = row["milliseconds"][name]["median"]
                _number(axis, x, height, f"{milliseconds:.2g}")
        for name, style in (("tensorflow_add", "--"), ("numpy_add", ":")):
            axis.axhline(
                machine["gigabytes_per_second"][name],
                color="0.3",
                linestyle=style,
                linewidth=1,
                label=f"a + b of large arrays, {'TensorFlow' if style == '--' else 'NumPy'}",
            )
        axis.set_xticks(range(len(found)), [_shape(row["settings"]) for row in found])
        axis.set_ylabel("GB/s of the least bytes")
        axis.set_title(f"{MODES[mode]} (on the bars: milliseconds)")
    axes[0].legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def _shape(settings):
    batch, size, channels, sources = (settings[k] for k in ("batch", "size", "channels", "sources"))
    return f"{batch} x {size} x {size} x {channels}\n{sources} sources"

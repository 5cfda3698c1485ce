"""Plot of the rows of `benchmarks.skipping`: time against the share of multiply-adds."""

from benchmarks.speed_plots import MODES, finish


def draw(rows, path):
    """Draws a panel a network and mode, a line a batch, as a PNG.

    Args:
        rows: list of rows of `benchmarks.skipping`.
        path: of the file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["settings"]["model"] for row in rows))
    modes = [m for m in ("inference", "train") if any(r["settings"]["mode"] == m for r in rows)]
    figure, axes = plt.subplots(
        len(modes),
        len(names),
        figsize=(max(4.2 * len(names), 6), 4.2 * len(modes) + 0.8),
        layout="constrained",
        squeeze=False,
    )
    for line, mode in zip(axes, modes, strict=True):
        for axis, name in zip(line, names, strict=True):
            settings = {"model": name, "mode": mode}
            found = [row for row in rows if settings.items() <= row["settings"].items()]
            if found:
                _panel(axis, found)
                axis.set_title(f"{name}, {MODES[mode]}")
            else:
                axis.set_axis_off()
    figure.supylabel("time over the static twin's")
    path.parent.mkdir(parents=True, exist_ok=True)
    finish(figure, rows, path)


def _panel(axis, rows):
    """Lines of `skip`, markers of `peer`, and a dotted line of `never`, by batch."""
    low = min(min(row["shares"].values()) for row in rows) - 0.03
    axis.plot([low, 1.02], [low, 1.02], color="0.5", linewidth=1, label="time = share of MACs")
    batches = sorted({row["settings"]["batch"] for row in rows})
    for number, batch in enumerate(batches):
        own = [row for row in rows if row["settings"]["batch"] == batch]
        color = f"C{number}"
        points = sorted((r["shares"]["skip"], *_ratio(r, "skip")) for r in own)
        x, y, first, third = zip(*points, strict=True)
        axis.plot(x, y, "o-", color=color, markersize=4, label=f"skip, batch {batch}")
        axis.fill_between(x, first, third, color=color, alpha=0.15, linewidth=0)
        # All nodes are computed: drawn at the share that skipping would leave.
        points = sorted((r["shares"]["skip"], _ratio(r, "never")[0]) for r in own)
        axis.plot(*zip(*points, strict=True), ":", color=color, label=f"never, batch {batch}")
        points = [(r["shares"]["peer"], _ratio(r, "peer")[0]) for r in own]
        axis.plot(*zip(*points, strict=True), "x", color=color, label=f"peer, batch {batch}")
    axis.set_xlabel("measured share of the static twin's MACs")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def _ratio(row, name):
    ratio = row["ratios"][f"{name}/chain"]
    return ratio["median"], *ratio["quartiles"]

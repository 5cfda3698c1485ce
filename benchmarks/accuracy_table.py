"""Rows of `benchmarks.accuracy`: read, summarised as a table, drawn, put into a document.

Imports nothing from the other benchmarks.
"""

import json

# The order in which wirings are shown.
WIRINGS = ("dynamic", "chain", "learned", "random", "complete")


def read_rows(path):
    """The rows of a JSON-lines file; none if it does not exist."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not JSON: {error}") from error
    return rows


def append_row(path, row):
    """Adds a row to a JSON-lines file; NumPy arrays become lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(row, default=lambda array: array.tolist()) + "\n")


def summarize(rows):
    """A table of one study's rows.

    Args:
        rows: rows that agree in all but wiring and seed, each pair of these once.

    Returns:
        List of dicts, one a wiring: `wiring`, `seeds`, `mean` and `std` (of accuracy, in
        percent), `parameters`, `macs`, `seconds` (median), and `minus`: dict of another wiring to
        (seeds in common, mean, half-width of the 95 % t interval) of the paired difference, in
        percentage points.
    """
    import numpy as np
    from scipy import stats

    accuracy = {}
    for row in rows:
        accuracy.setdefault(row["wiring"], {})[row["seed"]] = 100 * row["test_accuracy"]
    table = []
    for wiring, by_seed in accuracy.items():
        values = np.array(list(by_seed.values()))
        minus = {}
        for other, others in accuracy.items():
            common = sorted(set(by_seed) & set(others))
            if other == wiring or len(common) < 2:
                continue
            difference = np.array([by_seed[s] - others[s] for s in common])
            error = difference.std(ddof=1) / np.sqrt(len(common))
            half = stats.t.ppf(0.975, len(common) - 1) * error
            minus[other] = (len(common), float(difference.mean()), float(half))
        same = [row for row in rows if row["wiring"] == wiring]
        table.append(
            {
                "wiring": wiring,
                "seeds": len(values),
                "mean": float(values.mean()),
                "std": float(values.std(ddof=1)) if len(values) > 1 else None,
                "parameters": same[0]["parameters"],
                "macs": same[0]["macs"],
                "seconds": float(np.median([row["seconds"] for row in same])),
                "minus": minus,
            }
        )
    return table


def markdown(table):
    """The lines of a Markdown table of `summarize`."""
    lines = [
        "| wiring | seeds | accuracy, % | minus `chain` | minus `learned` | parameters | MACs "
        "| training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    base = next((row for row in table if row["wiring"] == "chain"), table[0])
    for row in table:
        spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
        cells = [
            f"`{row['wiring']}`",
            str(row["seeds"]),
            f"{row['mean']:.2f}{spread}",
            *(_difference(row["minus"].get(other)) for other in ("chain", "learned")),
            *(
                f"{row[key]:,} ({100 * (row[key] / base[key] - 1):+.2f} %)"
                for key in ("parameters", "macs")
            ),
            f"{row['seconds']:.0f} s",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _difference(entry):
    if entry is None:
        return ""
    count, mean, half = entry
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}] ({count})"


def plot(groups):
    """Accuracy of every run and means, a panel a study; runs of one seed are joined.

    Args:
        groups: dict of title to rows.

    Returns:
        A matplotlib `Figure`.
    """
    from dgnet_keras.drawing import new_figure

    figure = new_figure(1.5 + 4.2 * len(groups), 3.6)
    for axis, (title, rows) in zip(
        figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True
    ):
        wirings = [w for w in WIRINGS if any(row["wiring"] == w for row in rows)]
        for seed in sorted({row["seed"] for row in rows}):
            points = {row["wiring"]: row["test_accuracy"] for row in rows if row["seed"] == seed}
            found = [w for w in wirings if w in points]
            axis.plot(
                [wirings.index(w) for w in found],
                [100 * points[w] for w in found],
                color="0.75",
                linewidth=0.8,
                marker="o",
                markersize=3.5,
                markerfacecolor="tab:blue",
                markeredgewidth=0,
                zorder=1,
            )
        for k, wiring in enumerate(wirings):
            values = [100 * row["test_accuracy"] for row in rows if row["wiring"] == wiring]
            mean = sum(values) / len(values)
            axis.hlines(mean, k - 0.25, k + 0.25, color="black", zorder=2)
            axis.annotate(
                f"{mean:.2f}", (k + 0.27, mean), va="center", fontsize=8, annotation_clip=False
            )
        axis.set_xticks(range(len(wirings)), wirings)
        axis.set_xlim(-0.5, len(wirings) - 0.3)
        axis.set(title=title, ylabel="test accuracy, %")
    return figure


def fill_in(text, tables):
    """A document with tables, each between `<!-- table: NAME -->` and `<!-- end -->`.

    Args:
        text: the document.
        tables: dict of name to the table's lines; what the document has no place for is left out.
    """
    for name, lines in tables.items():
        head, mark, rest = text.partition(f"<!-- table: {name} -->\n")
        if mark:
            _, end, tail = rest.partition("<!-- end -->")
            if not end:
                raise ValueError(f"There is no <!-- end --> after <!-- table: {name} -->")
            text = "\n".join([head + mark, *lines, "", end + tail])
    return text

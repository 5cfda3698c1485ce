"""What the rows say: the device, what failed, and a table of each part, in Markdown."""

import collections

from benchmarks.skipping_networks import ONE_BY_ONE

# Besides the static twin, and what the table calls them.
CONTESTANTS = {"dynamic": "dynamic", "path": "path", "path_all": "path, all"}


def of_part(rows, part, failed=False):
    """The rows of a part that were measured, or those that failed."""
    return [row for row in rows if row["settings"]["part"] == part and ("error" in row) == failed]


def describe(rows):
    """What the rows were measured on, in a line."""
    for row in rows:
        if "environment" in row:
            e = row["environment"]
            devices = ", ".join(e["accelerators"]) or f"no accelerator; {e['cpu']}"
            return (
                f"{devices}; {e['usable_cpus']} CPUs, TensorFlow {e['tensorflow']}, "
                f"Keras {e['keras']}, commit {e['commit']}"
            )
    return "nothing was measured"


def name(settings):
    """A row's settings in a few words."""
    if settings["part"] == "tests":
        return settings["test"]
    if settings["part"] == "input":
        return "input pipeline"
    words = [settings["model"], settings["mode"], f"batch {settings['batch']}", settings["dtype"]]
    words += ["XLA"] * settings["xla"] + [f"share {settings['share']}"] * (settings["share"] < 1)
    return ", ".join(words)


def failures(rows):
    """A line for each row that failed."""
    return [f"{name(row['settings'])}: {row['error']}" for row in rows if "error" in row]


def _tests(rows):
    files = collections.defaultdict(collections.Counter)
    for row in of_part(rows, "tests") + of_part(rows, "tests", failed=True):
        if "outcome" in row:
            files[row["settings"]["test"].partition("::")[0]][row["outcome"]] += 1
    titles = ("passed", "failed", "skipped")
    lines = ["| tests | " + " | ".join(titles) + " |", "|---|---|---|---|"]
    return lines + [
        f"| `{file}` | " + " | ".join(str(counts[t]) for t in titles) + " |"
        for file, counts in files.items()
    ]


def _ratio(row, key):
    found = row["ratios"].get(f"{key}/chain")
    return f"{found['median']:.2f}" if found else "-"


def _memory(row, contestants):
    """Cells of MiB and ratios; none where it was not measured."""
    memory = row["peak_mib"]
    if not memory:
        return []
    ratios = (memory[k] / memory["chain"] if k in memory else None for k in contestants)
    return [f"{memory['chain']:,.0f}", *("-" if r is None else f"{r:.2f}" for r in ratios)]


def networks_table(rows):
    """The lines of a Markdown table of networks' rows."""
    titles = "network | mode | batch | dtype | XLA | share | static, ms | images/s"
    contestants = [k for k in CONTESTANTS if any(f"{k}/chain" in row["ratios"] for row in rows)]
    named = "".join(f" | {CONTESTANTS[key]}" for key in contestants)
    titles += named
    if any(row["peak_mib"] for row in rows):
        titles += " | memory, MiB" + named
    lines = [f"| {titles} |", "|---" * (titles.count("|") + 1) + "|"]
    for row in rows:
        s, time = row["settings"], row["milliseconds"]["chain"]["median"]
        images = s["batch"] if s["batch"] > 1 else ONE_BY_ONE
        cells = [f"`{s['model']}`", s["mode"], s["batch"], s["dtype"], "yes" if s["xla"] else "no"]
        cells += [f"{row['measured_share']:.2f}", f"{time:.1f}", f"{1000 * images / time:,.0f}"]
        cells += [*(_ratio(row, key) for key in contestants), *_memory(row, contestants)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _input(rows):
    lines = []
    for row in of_part(rows, "input"):
        e = row["environment"]
        lines.append(
            f"The input pipeline gives {row['images_per_second']:,.0f} images/s on "
            f"{e['usable_cpus']} CPUs: JPEGs of 500 x 375, random resized crop."
        )
        lines += [
            f"Training `{s['model']}` at batch {s['batch']} in {s['dtype']} takes "
            f"{1000 * s['batch'] / r['milliseconds']['chain']['median']:,.0f} images/s."
            for r in of_part(rows, "networks")
            for s in [r["settings"]]
            if s["mode"] == "train" and s["share"] == 1 and not s["xla"]
        ]
    return lines


def report(rows, left):
    """The lines of the report.

    Args:
        rows: list of the file's rows.
        left: list of what was not measured: names.
    """
    failed = failures(rows)
    lines = [f"Device: {describe(rows)}", ""]
    lines += [f"{len(failed)} failed:", *(f"- {line}" for line in failed), ""] if failed else []
    networks = of_part(rows, "networks")
    parts = [_tests(rows)] if any(r["settings"]["part"] == "tests" for r in rows) else []
    if networks:
        parts.append(
            [
                "Medians of turns in one process, over the static twin's. `path` trains with "
                '`path_gradient` "taken", `path, all` as by default.'
            ]
        )
        parts.append(networks_table(networks))
    parts.append(_input(rows))
    for part in parts:
        lines += [*part, ""]
    if left:
        lines.append(f"Left, {len(left)}: {'; '.join(left)}. The same command goes on with them.")
    else:
        lines.append("Everything was measured.")
    return lines

import json
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure

from benchmarks import measure, speed, speed_aggregation, speed_networks, speed_plots
from dgnet_keras.layers.conv import GroupedConv2D
from train.turns import in_turns

ENVIRONMENT = {
    "commit": "abc",
    "tensorflow": "2.20.0",
    "onednn": False,
    "cpu": "x",
    "usable_cpus": 2,
}


def test_contestants_take_turns_in_rotating_order():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = in_turns(steps, {"a": 2, "b": 1, "c": 2})
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 1, "c": 2}
    # Two turns to warm up; b sits out the last.
    assert "".join(calls) == "abc" + "bca" + "cab" + "ac"


def test_ratios_are_paired_by_turn():
    times = {"dynamic": [2.0, 9.0, 4.0], "chain": [1.0, 3.0, 4.0], "peer": [4.0]}
    ratios = measure.paired_ratios(times, [("dynamic", "chain"), ("dynamic", "peer")])
    # 2, 3 and 1; the ratio of the medians would be 4 / 3.
    assert ratios["dynamic/chain"] == {"median": 2.0, "quartiles": [1.5, 2.5]}
    assert ratios["dynamic/peer"] == {"median": 0.5, "quartiles": [0.5, 0.5]}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_growth_is_what_a_step_holds_at_most():
    ballast = np.ones(2**24)  # freed before, 128 MiB: no part of the growth
    del ballast
    growth = measure.peak_growth(lambda: np.ones(2**23).sum())  # 64 MiB
    assert 60 < growth < 90


def test_costs_are_medians_over_processes():
    def cost(peak):
        keys = ("compile_seconds", "trace_seconds", "variables_mib")
        return {**dict.fromkeys(keys, 1.0), "peak_mib": peak}

    costs = {"dynamic": [cost(p) for p in (30, 90, 20)], "chain": [cost(p) for p in (20, 10, 25)]}
    fields = speed_networks.summarize_costs(costs, ["dynamic", "chain"])
    assert fields["peak_mib"]["dynamic"]["median"] == 30
    assert fields["peak_ratios"] == {"dynamic/chain": 1.5}
    assert fields["compile_ratios"] == {"dynamic/chain": 1.0}


def test_macs_of_a_keras_network():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, strides=2, padding="same"),
            keras.layers.DepthwiseConv2D(3, padding="same"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    )
    assert speed_networks.count_macs(model) == 4 * 4 * 4 * 27 + 4 * 4 * 4 * 9 + 4 * 10


def test_the_peer_with_kerass_grouped_convolution_goes_through_xla():
    layer = GroupedConv2D(4, 3, groups=2)
    images = tf.random.stateless_normal((1, 5, 5, 4), (0, 0))
    values = {}
    for name in ("chain", "keras_groups"):
        with speed_networks.tracing(name):
            function = tf.function(lambda x: layer(x)).get_concrete_function(images)
        graph = str(function.graph.as_graph_def())
        assert ("_XlaMustCompile" in graph) == (name == "keras_groups")
        values[name] = function(images)
    np.testing.assert_allclose(values["chain"], values["keras_groups"], atol=1e-5)


@pytest.mark.parametrize("mode", ["sum", "gradient"])
def test_implementations_of_the_weighted_sum_agree(mode):
    inputs = speed_aggregation.random_inputs(2, 3, 4, 3)
    found = {name: f(*inputs) for name, f in speed_aggregation.functions(mode).items()}
    found.pop("add_n", None)
    for values in found.values():
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), values, found["einsum"]
        )


def fake_measurements(monkeypatch):
    """Measures nothing; returns the list of what was asked for."""
    asked = []

    def measure_elsewhere(settings, repeats, contestant=None):
        asked.append(contestant or settings["mode"])
        cost = dict.fromkeys(("compile_seconds", "trace_seconds", "variables_mib", "peak_mib"), 2.0)
        ratios = {
            f"{a}/{b}": {"median": 1.2, "quartiles": [1.1, 1.3]}
            for a, b in speed_networks.pairs(settings["contestants"])
        }
        return {**(cost if contestant else {"ratios": ratios}), "environment": ENVIRONMENT}

    monkeypatch.setattr(speed, "measure_elsewhere", measure_elsewhere)
    monkeypatch.setattr(measure, "machine_suffix", str)
    return asked


def test_a_table_goes_on_where_it_stopped(monkeypatch, tmp_path):
    asked = fake_measurements(monkeypatch)
    command = ["nodes", "--repeats", "3", "--processes", "2", "--output", str(tmp_path)]
    jobs = speed.plan("nodes", speed.parse(command))
    rows = measure.RowFile(tmp_path / "speed_nodes.json")
    measure.fill(jobs[:2], rows, speed.measure_row)
    assert asked == ["train", "inference"]
    speed.main(command)
    rows = json.loads((tmp_path / "speed_nodes.json").read_text())
    assert [row["settings"] for row in rows] == [job.settings for job in jobs]
    # The first row left: two processes of each of the two contestants, in turns.
    assert asked[2:6] == ["dynamic", "chain", "chain", "dynamic"]
    done = len(asked)
    speed.main(command)
    assert len(asked) == done
    speed.main([*command, "--again"])
    assert len(asked) == 2 * done
    speed.main([*command, "--repeats", "4"])
    again = json.loads((tmp_path / "speed_nodes.json").read_text())
    assert [row["settings"] for row in again] == [row["settings"] for row in rows]
    assert {row["repeats"]["chain"] for row in again} == {4, 2}
    assert (tmp_path / "speed_nodes.png").exists()


@pytest.mark.parametrize(
    ("table", "panels", "label"),
    [
        ("models", 8, "resnet50\n"),
        ("memory", 4, "resnet50\n"),
        ("nodes", 3, "36"),
        ("sizes", 1, "288"),
        ("batches", 1, "32"),
    ],
)
def test_plots_show_the_ratios_of_every_row(monkeypatch, tmp_path, table, panels, label):
    fake_measurements(monkeypatch)
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    speed.main([table, "--output", str(tmp_path)])
    assert (tmp_path / f"speed_{table}.png").exists()
    axes = [axis for axis in drawn[0].axes if axis.axison]
    assert len(axes) == panels
    for axis in axes:
        assert any(tick.get_text().startswith(label) for tick in axis.get_xticklabels())
        of_cost = any(word in axis.get_title() + axis.get_ylabel() for word in ("peak", "compile"))
        ratio = 1.0 if of_cost else 1.2
        found = [bar.get_height() for bar in axis.patches] or axis.lines[0].get_ydata()
        np.testing.assert_allclose(found, ratio)
        assert {text.get_text() for text in axis.texts} <= {f"{ratio:.2f}"}


def test_the_row_with_more_contestants_is_drawn():
    rows = [
        {"settings": {"model": "m", "contestants": names}, "repeats": dict.fromkeys(names, 1)}
        for names in (["dynamic", "chain", "keras_groups"], ["dynamic", "chain"])
    ]
    assert speed_plots._richest(rows) == rows[:1]


def test_slow_peers_are_timed_less_often_or_not_at_all():
    args = speed.parse(["models", "--models", "regnetx_016", "--peer-repeats", "2"])
    job = speed.plan("models", args)[0]
    assert job.repeats == {"dynamic": 15, "chain": 15, "keras_groups": 2}
    args = speed.parse(["models", "--models", "regnetx_016", "--no-peers"])
    assert all(len(job.repeats) == 2 for job in speed.plan("models", args))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["modles"], "invalid choice: 'modles'"),
        (["models", "--models", "resnet51"], "invalid choice: 'resnet51'"),
        (["models", "--repeats", "0"], "--repeats must be at least 1. Received: 0"),
        (["models", "--batch-size", "-1"], "--batch-size must be at least 1. Received: -1"),
        (["nodes", "--no-peers"], "--no-peers: of models alone. Received: nodes"),
        (["memory", "--batch-size", "2"], "--batch-size: of models alone. Received: memory"),
        (
            ["sizes", "--models", "resnet50"],
            "--models: of models and memory alone. Received: sizes",
        ),
    ],
)
def test_a_bad_option_is_refused(capsys, command, message):
    with pytest.raises(SystemExit):
        speed.parse(command)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("vector", "onednn", "suffix"),
    [("avx2", False, ""), ("avx512", False, "_avx512"), ("avx512", True, "_onednn_avx512")],
)
def test_machines_have_files_of_their_own(monkeypatch, vector, onednn, suffix):
    monkeypatch.setattr(measure, "vector_extension", lambda: vector)
    monkeypatch.setattr(measure, "onednn_elsewhere", lambda: onednn)
    assert measure.machine_suffix() == suffix


@pytest.mark.slow
def test_another_process_says_of_onednn_what_this_one_does():
    assert measure.onednn_elsewhere() == measure.onednn_enabled()


def test_a_file_that_holds_no_rows_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "machine_suffix", str)
    (tmp_path / "speed_nodes.json").write_text('[{"a": 1}]')
    with pytest.raises(SystemExit, match=r"speed_nodes\.json is not a file of rows"):
        speed.main(["nodes", "--output", str(tmp_path)])


@pytest.mark.slow
def test_a_quick_table(monkeypatch, tmp_path):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    monkeypatch.setattr(measure, "vector_extension", lambda: "avx2")
    monkeypatch.setattr(measure, "onednn_elsewhere", lambda: False)  # asks a process of its own
    speed.main(["aggregation", "--quick", "--output", str(tmp_path)])
    path = tmp_path / "speed_aggregation_quick.json"
    bandwidth, total, gradient = json.loads(path.read_text())
    assert set(bandwidth["gigabytes_per_second"]) == {
        *("numpy_copy", "numpy_add", "tensorflow_copy", "tensorflow_add")
    }
    maps = 4 * 2 * 8 * 8 * 16  # bytes of one
    assert (total["least_bytes"], gradient["least_bytes"]) == (4 * maps, 7 * maps)
    assert set(total["milliseconds"]) == set(speed_aggregation.IMPLEMENTATIONS)
    assert total["environment"]["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert total["environment"]["onednn"] is False
    assert total["environment"]["tensorflow"] == tf.__version__
    assert pathlib.Path(path.with_suffix(".png")).exists()

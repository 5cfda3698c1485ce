import json
import warnings

import h5py
import keras
import numpy as np
import pytest
from catalog import create, images, randomize

import dgnet_keras as dg
from dgnet_keras.weight_paths import WeightPaths

ROW = "resnet_cifar_split"


def values(model):
    return [v.numpy() for v in model.weights]


def unchanged(model, before):
    return all(np.array_equal(a, b) for a, b in zip(values(model), before, strict=True))


def test_copying_reports_what_was_copied():
    source, target = randomize(create(ROW)), create(ROW, wiring="chain")
    copied = dg.copy_weights(source, target)
    paths = [v.path for v in target.weights]
    assert copied == paths
    assert json.loads(json.dumps(copied)) == copied[:] == paths
    assert repr(copied) == f"{len(paths)} weights: {paths[0]}, {paths[1]}, ..."


@pytest.mark.parametrize(
    ("paths", "shown"),
    [([], "0 weights"), (["a"], "1 weight: a"), (["a", "b"], "2 weights: a, b")],
)
def test_few_weights_are_shown_whole(paths, shown):
    assert repr(WeightPaths(paths)) == shown


@pytest.mark.parametrize("change", [{"widths": (4, 12)}, {"depths": (5, 3)}, {"num_classes": 5}])
def test_weights_that_do_not_fit_are_named_and_change_nothing(change):
    source, target = create(ROW, **change), create(ROW, seed=1)
    before = values(target)
    with pytest.raises(ValueError, match=r"left as it was.*\n.*(expected|only in)"):
        dg.copy_weights(source, target)
    assert unchanged(target, before)


def test_routers_do_not_move_to_another_edge_scale():
    source, target = create(ROW, init="static"), create(ROW)
    with pytest.raises(ValueError, match=r"edge_scale=2.0 in the source, 1.0 in the target"):
        dg.copy_weights(source, target)
    dg.copy_weights(create(ROW, wiring="chain"), target)


def test_models_whose_weights_share_paths_are_refused():
    inputs = keras.Input((16, 16, 3))
    config = create(ROW, num_classes=None).get_config()
    towers = [dg.DGResNet.from_config({**config, "name": name}) for name in ("left", "right")]
    both = keras.Model(inputs, [tower(inputs) for tower in towers])
    with pytest.raises(ValueError, match="share their paths"):
        dg.copy_weights(both, both)


def test_a_weights_file_of_another_model_changes_nothing(tmp_path):
    path = tmp_path / "other.weights.h5"
    create(ROW, widths=(4, 12)).save_weights(path)
    target = create(ROW, seed=1)
    before = values(target)
    with pytest.raises(ValueError, match=r"do not fit the model.*left as it was"):
        dg.convert.load_weights(target, path)
    assert unchanged(target, before)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.weights\.h5"):
        create(ROW, weights=tmp_path / "nowhere.weights.h5")
    with pytest.raises(ValueError, match=r"\.weights\.h5, \.keras, \.safetensors.*model\.pkl"):
        create(ROW, weights=tmp_path / "model.pkl")
    (tmp_path / "model.keras").touch()
    with pytest.raises(ValueError, match=r"Did you mean .*model\.keras\?"):
        create(ROW, weights=tmp_path)
    for name, kind in (
        ("broken.weights.h5", "HDF5"),
        ("broken.keras", "Keras"),
        ("broken.safetensors", "safetensors"),
    ):
        (tmp_path / name).write_bytes(b"this is not such a file")
        with pytest.raises(ValueError, match=f"{name} is not a whole {kind} file"):
            create(ROW, weights=tmp_path / name)


def test_truncated_files_are_named_and_change_nothing(tmp_path):
    from safetensors.numpy import save_file

    save_file({"conv1.weight": np.zeros((64, 3, 7, 7), "float32")}, tmp_path / "a.safetensors")
    create(ROW).save_weights(tmp_path / "a.weights.h5")
    for name in ("a.safetensors", "a.weights.h5"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
        target = create(ROW, seed=1)
        before = values(target)
        with pytest.raises(ValueError, match="not a whole"):
            dg.convert.load_weights(target, tmp_path / name)
        assert unchanged(target, before)


def test_a_file_whose_routers_mean_something_else_is_refused(tmp_path):
    create(ROW, init="open").save(tmp_path / "open.keras")
    target = create(ROW, init="static", seed=1)
    before = values(target)
    message = r"edge_scale=1\.0 in the source, 2\.0 in the target"
    with pytest.raises(ValueError, match=message):
        dg.convert.load_weights(target, tmp_path / "open.keras")
    assert unchanged(target, before)
    dg.convert.load_weights(create(ROW, init="open", edge_scale=1.0), tmp_path / "open.keras")
    create(ROW, wiring="chain").save(tmp_path / "chain.keras")  # no routers: nothing to refuse
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        dg.convert.load_weights(target, tmp_path / "chain.keras")
        dg.convert.load_weights(create(ROW, wiring="random"), tmp_path / "chain.keras")
    with pytest.warns(UserWarning, match="computes something else.*init='static'") as caught:
        dg.convert.load_weights(create(ROW, init="open"), tmp_path / "chain.keras")
    assert {w.filename for w in caught if w.category is UserWarning} == {__file__}


@pytest.mark.parametrize("wiring", ["dynamic", "learned", "random", "complete"])
def test_a_weights_file_serves_every_wiring(wiring, tmp_path):
    path = tmp_path / "static.weights.h5"
    static = randomize(create(ROW, wiring="chain"))
    static.save_weights(path)
    model = create(ROW, wiring=wiring, seed=5)
    before = {v.path: v.numpy() for v in model.weights if dg.convert.is_wiring_weight(v.path)}
    dg.convert.load_weights(model, path)
    weights = {v.path: v for v in model.weights}
    for variable in static.weights:
        np.testing.assert_array_equal(weights[variable.path], variable)
    for name, value in before.items():
        np.testing.assert_array_equal(weights[name], value)
    model.save_weights(tmp_path / "back.weights.h5")
    again = create(ROW, wiring="chain", seed=6, weights=tmp_path / "back.weights.h5")
    np.testing.assert_array_equal(again(images()), static(images()))


def test_a_file_of_a_deeper_network_is_refused(tmp_path):
    path = tmp_path / "deep.weights.h5"
    create(ROW, depths=(5, 3), wiring="chain").save_weights(path)
    with pytest.raises(ValueError, match="only in the source"):
        create(ROW, weights=path)


def test_another_number_of_classes_loads_the_backbone_and_says_so(tmp_path):
    path = tmp_path / "five.weights.h5"
    source = randomize(create(ROW, num_classes=5))
    source.save_weights(path)
    with pytest.warns(UserWarning, match="has 5 classes, the model 3.*backbone was loaded"):
        model = create(ROW, seed=1, weights=path)
    np.testing.assert_array_equal(model.backbone(images()), source.backbone(images()))
    backbone = create(ROW, num_classes=None, weights=path)
    np.testing.assert_array_equal(backbone(images()), source.backbone(images()))
    backbone.save_weights(tmp_path / "backbone.weights.h5")
    with pytest.warns(UserWarning, match="has no classes, the model 3"):
        create(ROW, weights=tmp_path / "backbone.weights.h5")


def test_a_keras_file_serves_as_weights(tmp_path):
    source = randomize(create(ROW))
    source.compile("adam", "mse")
    source.optimizer.build(source.trainable_variables)
    source.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        create(ROW, seed=1, weights=tmp_path / "model.keras")(images()), source(images())
    )
    with pytest.warns(UserWarning, match="has 3 classes, the model 5"):
        other = create(ROW, num_classes=5, wiring="chain", weights=tmp_path / "model.keras")
    weights = {v.path: v for v in source.weights}
    for variable in other.backbone.weights:
        np.testing.assert_array_equal(variable, weights[variable.path])


def test_hub_names_need_the_package_and_a_network(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"dgnet_keras\[hub\]"):
        dg.load_timm(create(ROW), "timm/resnet50.a1_in1k")

    class Hub:
        @staticmethod
        def hf_hub_download(repo_id, filename):
            raise OSError("no network")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    with pytest.raises(ConnectionError, match=r"timm/resnet50\.a1_in1k.*no network"):
        dg.load_timm(create(ROW), "timm/resnet50.a1_in1k")
    with pytest.raises(FileNotFoundError, match=r"No weights file at /no/such\.safetensors"):
        dg.load_timm(create(ROW), "/no/such.safetensors")


def test_a_backbone_takes_weights_too():
    source, target = (create(ROW, num_classes=None, seed=s) for s in (0, 1))
    dg.copy_weights(source, target)
    np.testing.assert_array_equal(source(images()), target(images()))


@pytest.mark.parametrize(("policy", "depth"), [("bfloat16", 26), ("float16", 2)])
def test_a_weights_file_under_a_narrow_policy(policy, depth, tmp_path):
    """The deep one has more weights than bfloat16 has exact integers: each must find its place."""
    keras.config.set_dtype_policy(policy)
    options = {"depths": (depth,), "widths": (2,), "wiring": "chain", "max_nodes": None}
    source = create(ROW, seed=1, **options)
    source.save_weights(tmp_path / "deep.weights.h5")
    model = create(ROW, seed=2, weights=tmp_path / "deep.weights.h5", **options)
    assert len(model.weights) > 256 or policy == "float16"
    for ours, theirs in zip(model.weights, source.weights, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(
            keras.ops.cast(ours, "float32"), keras.ops.cast(theirs, "float32")
        )


def test_what_weights_do_not_show_is_warned_of(tmp_path):
    source = create(ROW, threshold=0.2)
    source.preprocessing = dg.Preprocessing(16, 0.5, mean=0.5, std=0.5)
    source.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="trained as another network, though") as found:
        create(ROW, stem_strides=2, weights=tmp_path / "model.keras")
    (message,) = [str(w.message) for w in found if w.category is UserWarning]
    assert "preprocessing.mean [0.5] (here [0.485, 0.456, 0.406])" in message
    assert "stem_strides 1 (here 2)" in message
    assert "threshold 0.2 (here 0.1)" in message
    assert "crop" not in message
    same = create(ROW, threshold=0.2)
    same.preprocessing = dg.Preprocessing(32, 1.0, mean=0.5, std=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        dg.convert.load_weights(same, tmp_path / "model.keras")


@pytest.mark.parametrize("wiring", ["dynamic", "learned"])
def test_a_threshold_that_was_set_later_is_no_weight_and_that_is_said(wiring, tmp_path):
    source = create(ROW, wiring=wiring)
    source.set_threshold(0.6)
    source.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match=r"threshold 0\.6 \(here 0\.1\)"):
        target = create(ROW, wiring=wiring, weights=tmp_path / "model.keras")
    with pytest.warns(UserWarning, match=r"given the threshold 0\.6 .*keeps its own"):
        dg.copy_weights(source, target)
    target.set_threshold(0.6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        dg.copy_weights(source, target)
        dg.convert.load_weights(target, tmp_path / "model.keras")
        dg.copy_weights(create(ROW, wiring=wiring, threshold=0.3), target)  # was said of each
        dg.copy_weights(source, create(ROW, wiring="chain"))
        source.set_threshold(0.3)
        dg.copy_weights(source, create(ROW, wiring=wiring, threshold=0.3))


def threshold_of(model):
    (threshold,) = {float(s.gates()[0].threshold.numpy()) for s in model.backbone.stages}
    return threshold


def test_a_threshold_of_paths_comes_with_what_it_was_found_for(tmp_path):
    source = randomize(create("resnet_cifar_path"))
    source.set_threshold(1.5)
    same, other = (create("resnet_cifar_path", wiring=w) for w in ("path", "learned_path"))
    for target, expected in ((same, 1.5), (other, 0.0)):
        dg.copy_weights(source, target)
        assert threshold_of(target) == expected
    for name in ("model.weights.h5", "model.keras"):
        (source.save if name.endswith(".keras") else source.save_weights)(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of another threshold
            found = [
                create("resnet_cifar_path", weights=tmp_path / name, **given)
                for given in ({}, {"threshold": 0.5})
            ]
        assert [threshold_of(model) for model in found] == [1.5, 0.5]


def test_a_threshold_of_paths_in_several_graphs_comes_too():
    options = {"wiring": "learned_path", "depths": (5, 4), "max_nodes": 2}
    source, target = (create("resnet_cifar_path", **options) for _ in range(2))
    source.set_threshold(0.7)
    dg.copy_weights(source, target)
    assert threshold_of(target) == pytest.approx(0.7)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_routers_of_other_graphs_are_refused_as_a_whole(suffix, tmp_path):
    options = {"wiring": "dynamic", "depths": (5, 5), "input_shape": (16, 16, 3)}
    source, target = (create("resnet_cifar_path", max_nodes=n, **options) for n in (3, 5))
    (source.save if suffix == ".keras" else source.save_weights)(tmp_path / f"x{suffix}")
    before = values(target)
    with pytest.raises(ValueError, match=r"left as it was.*\n.*expected"):
        dg.convert.load_weights(target, tmp_path / f"x{suffix}")
    assert unchanged(target, before)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_edge_logits_of_other_graphs_are_left_out_as_a_whole(suffix, tmp_path):
    options = {"wiring": "learned", "depths": (6, 4), "input_shape": (16, 16, 3)}
    source, target = (create("resnet_cifar_path", max_nodes=n, **options) for n in (4, 3))
    randomize(source)
    (source.save if suffix == ".keras" else source.save_weights)(tmp_path / f"x{suffix}")
    with pytest.warns(UserWarning, match=r"another wiring|max_nodes 4 \(here 3\)"):
        loaded = dg.convert.load_weights(target, tmp_path / f"x{suffix}")
    assert not any(map(dg.convert.is_wiring_weight, loaded))


@pytest.mark.parametrize(
    ("source", "target"),
    [("learned", "learned_path"), ("learned_path", "random"), ("random", "learned")],
)
def test_wirings_whose_weights_have_one_name_in_files_leave_each_others(source, target, tmp_path):
    file = tmp_path / "model.weights.h5"
    trained = randomize(create("resnet_cifar_learned", wiring=source))
    trained.save_weights(file)
    wanted = create("resnet_cifar_learned", wiring=target, seed=3)
    before = {v.path: v.numpy() for v in wanted.weights}
    with pytest.warns(UserWarning, match=r"weights of another wiring.*left out"):
        dg.convert.load_weights(wanted, file)
    blocks = {v.path: v.numpy() for v in trained.weights}
    for variable in wanted.weights:
        is_wiring = dg.convert.is_wiring_weight(variable.path)
        expected = (before if is_wiring else blocks)[variable.path]
        np.testing.assert_array_equal(variable, expected)


@pytest.mark.parametrize(
    ("wiring", "name", "message"),
    [
        ("dynamic", "model.keras", r"wiring dynamic \(here chain\)"),
        ("complete", "model.keras", r"wiring complete \(here chain\)"),
        ("dynamic", "model.weights.h5", "weights of another wiring.*left out"),
    ],
)
def test_a_wiring_that_is_left_out_is_warned_of(wiring, name, message, tmp_path):
    source = create(ROW, wiring=wiring)
    save = source.save if name.endswith(".keras") else source.save_weights
    save(tmp_path / name)
    with pytest.warns(UserWarning, match=message) as found:
        create(ROW, wiring="chain", weights=tmp_path / name)
    assert [w.category for w in found].count(UserWarning) == 1


def test_names_in_weights_files_stay_those_of_older_versions(tmp_path):
    """Keras names layers in a file by the attributes that lead to them."""
    for row, expected in (
        ("resnet_cifar_split", "layers/graph_stage/_routers/router/vars/0"),
        ("resnet_cifar_learned_threshold", "layers/graph_stage/_gates/threshold_gate/vars/0"),
        ("resnet_cifar_learned", "layers/graph_stage/vars/0"),
        ("resnet_cifar_path", "layers/graph_stage/_path_routers/path_router/vars/0"),
    ):
        model = create(row, macs_target=1.0)
        model.save_weights(tmp_path / "x.weights.h5")
        with h5py.File(tmp_path / "x.weights.h5") as file:
            assert expected in file, row


@pytest.mark.parametrize("kind", ["dynamic", "learned_path", "chain"])
def test_paths_take_and_give_the_blocks_of_other_wirings(kind, tmp_path):
    source, target = create("resnet_cifar_path", wiring=kind), create("resnet_cifar_path", seed=1)
    for a, b in ((source, target), (target, source)):
        file = tmp_path / "x.weights.h5"
        a.save_weights(file)
        other = create("resnet_cifar_path", wiring=b.wiring, seed=2)
        blocks = {v.path for v in create("resnet_cifar_path", wiring="chain").weights}
        assert blocks <= set(dg.copy_weights(a, b))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the wiring that was left out
            assert blocks <= set(dg.convert.load_weights(other, file))


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
@pytest.mark.parametrize("wiring", ["dynamic", "learned"])
def test_a_graph_created_from_static_weights_starts_as_the_static_network(wiring, suffix, tmp_path):
    options = {"num_classes": 3, "input_shape": (16, 16, 3), "depths": (1, 2), "widths": (4, 8)}
    static = randomize(dg.create("resnet20_cifar", wiring="chain", **options))
    path = tmp_path / f"static{suffix}"
    (static.save if suffix == ".keras" else static.save_weights)(path)
    x = images(4, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = dg.create("resnet20_cifar", wiring=wiring, weights=path, **options)
    np.testing.assert_allclose(model(x), static(x), atol=1e-5)
    with pytest.warns(UserWarning, match="computes something else"):
        opened = dg.create("resnet20_cifar", wiring=wiring, weights=path, init="open", **options)
    assert opened.backbone.graph_options.init == "open"
    path = tmp_path / f"graph{suffix}"
    graph = dg.create("resnet20_cifar", wiring=wiring, **options)
    (graph.save if suffix == ".keras" else graph.save_weights)(path)
    again = dg.create("resnet20_cifar", wiring=wiring, weights=path, **options)
    assert again.backbone.graph_options.init == "open"


def test_weights_of_another_variant_are_named(tmp_path):
    options = {"num_classes": 3, "input_shape": (16, 16, 3), "wiring": "chain"}
    path = tmp_path / "static.keras"
    dg.create("resnet32_cifar", **options).save(path)
    with pytest.raises(
        ValueError, match=r"of the variant resnet32_cifar\. Received: a model of resnet20"
    ):
        dg.create("resnet20_cifar", weights=path, **options)
    # depths of one's own are not told by the name: what differs is listed
    with pytest.raises(ValueError, match="do not fit the model"):
        dg.create("resnet32_cifar", depths=(1, 2, 3), weights=path, **options)


def test_a_timm_file_of_another_variant_is_named(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "resnet34.a1_in1k.safetensors"
    save_file({"conv1.weight": np.zeros((64, 3, 7, 7), "float32")}, path)
    with pytest.raises(
        ValueError, match=r"resnet34\. Received: a model of resnet18(?s:.*)only in the"
    ):
        dg.create("resnet18", input_shape=(32, 32, 3), weights=path)

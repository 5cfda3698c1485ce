import numpy as np
import pytest
from catalog import create, images, randomize

import dgnet_keras as dg


@pytest.mark.parametrize("row", ["resnet_cifar_path", "mobilenet_v2_path", "regnety_learned_path"])
def test_where_all_images_agree_it_answers_as_the_model(row, capsys):
    model = randomize(create(row, input_shape=(16, 16, 3)))
    kept = []
    for k, stage in enumerate(model.backbone.stages):
        for graph in stage.graphs:
            which = np.arange(1, graph.num_blocks) % 2 == k % 2
            kept.append(which)
            for i, is_taken in enumerate(which, start=graph.first + 1):
                if stage.routers():
                    stage.routers()[i].kernel.assign(0 * stage.routers()[i].kernel)
                    stage.routers()[i].bias.assign([2.0 if is_taken else -2.0])
            for weight in stage.weights:
                if weight.name == f"node_logits{graph.key.removeprefix(stage.name)}":
                    weight.assign(np.where(which, 2.0, -2.0))
    x = images(8)
    frozen = dg.freeze(model, x)
    assert frozen.wiring == "chain" and type(frozen) is type(model)
    before, after = (sum(map(len, (s.blocks for s in m.backbone.stages))) for m in (model, frozen))
    assert after == before - sum((~which).sum() for which in kept) < before
    np.testing.assert_array_equal(frozen(x), model(x))
    said = capsys.readouterr().out
    assert f"{after} of {before} blocks" in said and "100.0% of the predictions" in said


def test_the_nodes_that_most_images_take_are_kept(capsys):
    model = randomize(create("resnet_cifar_path", depths=(6,), widths=(8,)), seed=1, scale=0.5)
    x = images(200)
    dg.calibrate(model, x, macs=0.6)
    rates = dg.adjacency(model, x)["stage1"].any(axis=1).mean(axis=0)[1:-1]
    assert rates.min() < 0.5 < rates.max() and ((0 < rates) & (rates < 1)).any()
    frozen = dg.freeze(model, x, verbose=False)
    assert capsys.readouterr().out == ""
    assert frozen.backbone.spec.depths == (1 + int((rates > 0.5).sum()),)
    assert frozen.preprocessing == model.preprocessing
    backbone = dg.freeze(model.backbone, x)
    assert isinstance(backbone, dg.Backbone) and "predictions" not in capsys.readouterr().out


def test_of_one_class_the_side_of_its_logit_is_the_prediction(capsys):
    options = {"depths": (6,), "widths": (8,), "num_classes": 1}
    model = randomize(create("resnet_cifar_path", **options), seed=1, scale=0.5)
    x = images(200)
    dg.calibrate(model, x, macs=0.6)
    model.get_layer("logits").bias.assign_sub(np.median(model(x).numpy(), axis=0))
    frozen = dg.freeze(model, x)
    same = np.mean((model(x).numpy() > 0) == (frozen(x).numpy() > 0))
    assert same < 1
    assert f"{same:.1%} of the predictions" in capsys.readouterr().out


@pytest.mark.parametrize("wiring", ["chain", "dynamic", "complete"])
def test_other_wirings_are_refused(wiring):
    with pytest.raises(ValueError, match=f"Received: wiring='{wiring}'"):
        dg.freeze(create("resnet_cifar_path", wiring=wiring), images(2))

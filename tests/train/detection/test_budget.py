"""A detector whose backbone has paths and a budget."""

import json

import numpy as np
import pytest
from train_helpers import ANY_SCORE, tiny_detector

import dgnet_keras as dg
from dgnet_keras.complexity import model_costs
from train.detection.data import load_data
from train.detection.run import DetectionRun, train
from train.strategies import one_device

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("detection_budget")]
SETTINGS = (
    "wiring=path",
    'model_overrides={"depths":[1,3,2,1],"widths":[32,64,64,64]}',
    "macs_target=0.8",
    "macs_weight=40",
    "macs_start=0.8",
    "router_lr_multiplier=300",
)


def test_a_run_moves_the_target_and_says_the_share(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("train.detection.run.export_detector", lambda *_: None)  # takes long
    recipe = tiny_detector("coco_tiny_retinanet", ANY_SCORE, *SETTINGS)
    results = train(recipe, tmp_path, data_dir=scenes)
    history = json.loads((tmp_path / "history.json").read_text())
    assert 0 < history[1]["train_share_of_macs"] < history[0]["train_share_of_macs"] <= 1
    assert results["share_of_macs"] == history[-1]["share_of_macs"]

    run = DetectionRun(recipe, load_data(recipe, tmp_path, scenes), one_device())
    run.restore(tmp_path)
    backbone = run.backbone.backbone
    assert (backbone.macs_target, backbone.macs_weight) == (0.8, 40.0)
    for gate in backbone.stages[0].gates():
        assert float(gate.noise) == 0.0  # the last steps had none
    batches = run.task.build_inputs(run.params.task.validation_data)
    images = np.concatenate([images.numpy() for images, _ in batches])
    spent = dg.count_macs(backbone, images)["per_instance"]["macs"]
    static = model_costs(backbone, images.shape[1:3]).static
    assert results["share_of_macs"] == pytest.approx(spent.mean() / static, abs=1e-5)
    assert len(set(spent)) > 1

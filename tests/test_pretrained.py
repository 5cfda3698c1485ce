import pathlib

import pytest

import dgnet_keras as dg
from dgnet_keras.timm import is_hub_name


def test_published_weights_of_a_variant_come_best_first():
    rows = dg.list_pretrained("resnet50")
    assert {row.variant for row in rows} == {"resnet50"}
    assert [row.top1 for row in rows] == sorted((row.top1 for row in rows), reverse=True)
    # As in timm's table of August 2026.
    assert ("timm/resnet50.a1_in1k", "resnet50", 0.8038, 224, "apache-2.0") in rows
    assert ("timm/resnet50.tv_in1k", "resnet50", 0.7616, 224, "bsd-3-clause") in rows


def test_every_row_is_of_a_variant_and_has_a_hub_name():
    rows = dg.list_pretrained()
    names = [row.weights for row in rows]
    assert len(set(names)) == len(names)
    assert all(is_hub_name(name) for name in names)
    assert {row.variant for row in rows} < set(dg.list_variants())
    assert all(0.6 < row.top1 < 0.9 and row.license for row in rows)


def test_a_variant_without_weights_has_an_empty_list_and_an_unknown_one_is_refused():
    assert dg.list_pretrained("resnet20_cifar") == []
    with pytest.raises(ValueError, match=r"Unknown variant 'resnet5O'.*resnet50"):
        dg.list_pretrained("resnet5O")


def test_a_changed_list_stays_with_its_owner():
    dg.list_pretrained("resnet18").clear()
    assert dg.list_pretrained("resnet18")


def test_the_docs_count_them_right():
    rows, variants = dg.list_pretrained(), dg.list_variants()
    text = (pathlib.Path(__file__).parents[1] / "docs" / "models.md").read_text()
    fitting = len({row.variant for row in rows})
    assert f"{len(rows)} weights fit {fitting} of the {len(variants)} variants" in text

import pytest

import dgnet_keras as dg


def test_a_small_network_by_hand():
    model = dg.create(
        "resnet20_cifar", depths=(2,), widths=(4,), num_classes=3, input_shape=(8, 8, 3)
    )
    counted = dg.count_macs(model)
    stem, block, pixels = 3 * 3 * 3 * 4, 2 * 3 * 3 * 4 * 4, 8 * 8
    assert counted["by_kind"] == {
        "convolution": pixels * (stem + 2 * block),
        "dense": 4 * 3,
        "router": 4 * (2 + 1),
        "aggregation": 3 * pixels * 4,
    }
    assert counted["macs"] == sum(item["macs"] for item in counted["items"])
    batch_norm, routers = 5 * 2 * 4, 4 * 3 + 3
    assert counted["parameters"] == stem + 2 * block + batch_norm + routers + 4 * 3 + 3


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("resnet18", 11_689_512, 1_814_073_344),
        ("resnet50", 25_557_032, 4_089_184_256),
    ],
)
def test_static_networks_of_the_literature(name, parameters, macs):
    counted = dg.count_macs(dg.create(name, wiring="chain"))
    assert counted["parameters"] == parameters
    assert counted["macs"] == pytest.approx(macs, rel=1e-3)


def test_cifar_resnet20_has_the_known_number_of_parameters():
    model = dg.create("resnet20_cifar", num_classes=10, input_shape=(32, 32, 3), wiring="chain")
    assert dg.count_macs(model)["parameters"] == 272_474


def test_a_strided_network_counts_at_any_image_size():
    model = dg.create("resnet18", input_shape=(None, None, 3), wiring="chain")
    small, large = (dg.count_macs(model, image_size=s)["macs"] for s in ((224, 224), (448, 448)))
    assert large - 512_000 == 4 * (small - 512_000)

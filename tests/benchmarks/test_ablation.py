import numpy as np
import pytest

from benchmarks import ablation


def test_a_missing_document_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"benchmarks\.ablation: .*nowhere\.md"):
        ablation.main(["--workdir", str(tmp_path), "--document", str(tmp_path / "nowhere.md")])


def test_substitutes_are_what_their_names_say(rng):
    matrices = np.zeros((6, 3, 3))
    matrices[:, 0, 1] = np.arange(1, 7)
    matrices[:, 1, 2] = 1
    matrices[4:, 0, 2] = 3
    labels = np.array([0, 0, 0, 1, 1, 1])
    found = {}
    for name, given in ablation.substitutes({"stage1": matrices}, labels, rng):
        found.setdefault(name, []).append(given["stage1"])
    for given in found["other_image"]:
        assert sorted(given[:, 0, 1]) == [1, 2, 3, 4, 5, 6]
    for given in found["other_image_of_class"]:
        assert sorted(given[:3, 0, 1]) == [1, 2, 3]
    np.testing.assert_allclose(found["mean"][0][:, 0, 1], 3.5)
    np.testing.assert_allclose(found["mean"][0][:, 0, 2], 1)
    np.testing.assert_allclose(found["most_frequent_path"][0][:, 0, 1], 2.5)
    np.testing.assert_allclose(found["most_frequent_path"][0][:, 0, 2], 0)

import concurrent.futures

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.serving import c_api

pytestmark = pytest.mark.xdist_group("c_api")  # what its fixtures make is made once


class Echo(tf.Module):
    """Gives back what it is given."""

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 2), tf.uint8, "pixels"),
            tf.TensorSpec((), tf.float32, "scale"),
            tf.TensorSpec((None,), tf.string, "texts"),
        ]
    )
    def __call__(self, pixels, scale, texts):
        is_valid = tf.debugging.Assert(scale > 0, ["scale must be positive"])
        with tf.control_dependencies([is_valid]):
            scaled = tf.cast(pixels, tf.float32) * scale
        return {"scaled": scaled, "texts": texts, "count": tf.size(texts, tf.int64)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("echo"))
    module = Echo()
    tf.saved_model.save(module, path, signatures={"serving_default": module.__call__})
    return path


@pytest.fixture(scope="module")
def answers(directory):
    """Of a request, of the same with empty arrays, and of one that is refused."""
    request = {
        "pixels": np.array([[1, 2], [3, 4], [5, 250]], "uint8")[:, ::-1],  # not contiguous
        "scale": np.float32(0.5),
        "texts": [b"", b"short", b"\x00" + b"longer than fits into the struct" * 3],
    }
    empty = {**request, "pixels": np.zeros((0, 2), "uint8")}
    refused = {**request, "scale": np.float32(0)}
    tensors = c_api.signature_tensors(directory)
    requests = [("serving_default", r) for r in (request, empty, refused)]
    return request, c_api.run_elsewhere(directory, tensors, requests)


def test_arrays_scalars_and_texts_go_through(answers):
    request, (answer, empty, _) = answers
    np.testing.assert_array_equal(answer["scaled"], request["pixels"] * np.float32(0.5))
    assert answer["texts"].tolist() == request["texts"]
    assert answer["count"] == 3
    assert answer["count"].shape == ()
    assert empty["scaled"].shape == (0, 2)


def test_a_refusal_has_its_code_and_message(answers):
    _, (_, _, refused) = answers
    assert isinstance(refused, c_api.CApiError)
    assert refused.code == c_api.INVALID_ARGUMENT
    assert "scale must be positive" in str(refused)


def test_what_is_no_saved_model_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="Could not find SavedModel"):
        c_api.run_elsewhere(tmp_path, {}, [])


def test_threads_get_their_own_answer_or_refusal(directory):
    model = c_api.SavedModel(directory, c_api.signature_tensors(directory))

    def ask(k):
        request = {"pixels": np.full((1, 2), k % 200, "uint8"), "texts": [b"%d" % k]}
        if k % 3 == 0:
            with pytest.raises(c_api.CApiError, match="must be positive"):
                model("serving_default", {**request, "scale": np.float32(0)})
            return True
        answer = model("serving_default", {**request, "scale": np.float32(1)})
        return answer["texts"][0] == b"%d" % k and (answer["scaled"] == k % 200).all()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(2000)))
    model.close()

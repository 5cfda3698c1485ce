"""What takes long to compile, for the core of the catalog: XLA, and Keras's own export."""

import numpy as np
import pytest
import tensorflow as tf
from catalog import CORE, create, images, randomize
from fitting import fit

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("row", CORE)]


def test_fit_with_xla(row):
    fit(create(row, input_shape=(16, 16, 3)), jit_compile=True)


def test_keras_export(row, tmp_path):
    model = randomize(create(row))
    model.export(tmp_path / "export", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "export"))
    for x in (images(1), images(3, size=24)):
        np.testing.assert_allclose(served.serve(x), model(x), rtol=1e-5, atol=1e-5)

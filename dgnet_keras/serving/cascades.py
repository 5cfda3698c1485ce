"""What an exported cascade answers with: of two networks, raw images in."""

import keras
import tensorflow as tf

from dgnet_keras.cascading import logarithm
from dgnet_keras.serving.signatures import ServingModule


class CascadeServingModule(ServingModule):
    """As `ServingModule`, of a `Cascade` of two classifiers of this package.

    Features and adjacency are the first network's. Multiply-adds are those of both networks for
    the images that the second was asked about, which `connectivity` names as `asked_again`. There
    is no signature with a threshold: the dial of a cascade is its `confidence`, a weight.
    """

    def _everything(self, model):
        first, macs = super()._everything(model.first), self._macs(model.second)
        paths = keras.Model(model.second.input, dict(model.second.adjacency_outputs))

        def run(images):
            found = first(images)
            probabilities, again = model.asked_again(found["logits"], images)
            index = tf.where(again)

            def of_both():
                asked = tf.gather_nd(images, index)
                more = macs(paths(asked, training=False), asked)
                return tf.tensor_scatter_nd_add(found["macs"], index, more)

            both = tf.cond(tf.reduce_any(again), of_both, lambda: found["macs"])
            logits = logarithm(probabilities)
            return {**found, "logits": logits, "macs": both, "asked_again": again}

        return run

    def _dial(self, model):
        return None

    def _with_macs(self, found):
        return {**super()._with_macs(found), "asked_again": found["asked_again"]}

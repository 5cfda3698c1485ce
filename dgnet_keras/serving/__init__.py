"""Serving: the SavedModel that is served, the server's configuration, and its client.

`Client` and `ServingError` run without Keras and, over REST, without TensorFlow.
"""

from dgnet_keras.serving.client import Client
from dgnet_keras.serving.errors import ServingError

__all__ = ["Client", "ServingError"]

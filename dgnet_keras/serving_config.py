"""Another name of `dgnet_keras.serving.config`."""

from dgnet_keras.serving.config import found_versions, health_command, write_serving_config

__all__ = ["found_versions", "health_command", "write_serving_config"]

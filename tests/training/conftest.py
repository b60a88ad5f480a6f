"""The tiny run's fixtures."""

from tests.tiny_run import assert_bitwise_equal, built_once, saved, start_training, tiny_config, tiny_text

__all__ = ["assert_bitwise_equal", "built_once", "saved", "start_training", "tiny_config", "tiny_text"]

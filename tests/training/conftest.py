"""The tiny run's fixtures, and a checkpointer."""

import pytest

from slmjax.training.checkpoints.checkpointer import Checkpointer
from slmjax.training.checkpoints.config import CheckpointConfig
from tests.tiny_run import assert_bitwise_equal, built_once, saved, tiny_config, tiny_text

__all__ = ["assert_bitwise_equal", "built_once", "saved", "tiny_config", "tiny_text"]


@pytest.fixture
def checkpointer(tmp_path):
    checkpointer = Checkpointer(tmp_path / "checkpoints", CheckpointConfig())
    yield checkpointer
    checkpointer.close()

"""Named models as data; config files import `model_config` from here."""

from slmjax.models.families.registry import families, model_config

__all__ = ["families", "model_config"]

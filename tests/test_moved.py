"""Modules that moved are found by their old names."""

from importlib import import_module

import pytest

from slmjax.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_leads_to_all_that_is_public_where_it_went(old):
    with pytest.warns(DeprecationWarning, match=old.replace(".", r"\.")):
        module = import_module(f"slmjax.{old}")
    for home in MOVED[old].split():
        new = import_module(f"slmjax.{home}")
        assert new.__name__ == f"slmjax.{home}"
        for name in vars(new):
            if not name.startswith("_"):
                getattr(module, name)
    with pytest.raises(AttributeError, match="has an attribute 'nothing'"):
        _ = module.nothing


ROOMS = {  # what was a module and became a room
    "data.conversations": "parse_record",
    "evaluation.tasks": "check_tasks",
    "formats.adapters": "open_adapter",
    "formats.gguf": "load_gguf",
    "formats.huggingface": "load_huggingface",
    "models.attention": "Attention",
    "models.families": "model_config",
    "training.checkpoints": "Checkpointer",
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_the_names_of_the_module_that_it_was(room):
    assert getattr(import_module(f"slmjax.{room}"), ROOMS[room])


def test_a_name_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"slmjax\.training\.nothing"):
        import_module("slmjax.training.nothing")

"""The model's own settings are what is used where the caller says nothing; contexts reach as far as scaling goes."""

import dataclasses
import json

import numpy as np
import pytest

import slmjax
from slmjax.cli.main import main
from slmjax.errors import UserError
from slmjax.inference.description import Description
from slmjax.inference.generate import generate
from slmjax.inference.generation_settings import (
    default_length,
    default_sampling,
    default_stop,
    read_settings,
    stop_ids_from,
    with_known,
    without_known,
)
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.sampling import GREEDY, Sampling
from slmjax.models.config import ModelConfig, RopeScaling
from slmjax.models.parameters import abstract_params
from slmjax.tokenization.tokenizer import train_bpe
from tests.tiny import noise

DRAWN = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2}


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({}, {}, GREEDY),
        ({"temperature": 0.6, "top_p": 0.9}, {}, Sampling(top_p=0.9)),  # no do_sample: greedy, as in transformers
        (DRAWN, {}, Sampling(0.6, 50, 0.9, 0.1, 1.2)),
        (DRAWN | {"top_k": 0}, {}, Sampling(0.6, 0, 0.9, 0.1, 1.2)),
        (DRAWN, {"temperature": 0.0}, Sampling(0.0, 50, 0.9, 0.1, 1.2)),
        (DRAWN, {"temperature": 1.5, "top_k": 3, "top_p": None}, Sampling(1.5, 3, 0.9, 0.1, 1.2)),
        ({"repetition_penalty": 1.2}, {}, Sampling(repetition_penalty=1.2)),
        ({"do_sample": True}, {}, Sampling(1.0, 50)),
        ({"do_sample": False, "temperature": None, "top_k": None}, {"temperature": 0.7}, Sampling(0.7)),
    ],
)
def test_what_is_given_outranks_what_the_model_has(settings, given, expected):
    assert default_sampling(settings, **given) == expected


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"do_sample": "yes"}, "do_sample"),
        ({"do_sample": True, "temperature": "hot"}, "temperature"),
        ({"do_sample": True, "top_k": 1.5}, "top_k"),
        ({"do_sample": True, "top_p": 7}, "top_p"),
        ({"repetition_penalty": -1}, "repetition_penalty"),
    ],
)
def test_odd_settings_are_one_sentence(settings, match):
    with pytest.raises(UserError, match=match):
        default_sampling(settings)


def test_what_is_not_done_is_told():
    with pytest.warns(UserWarning, match="num_beams=4"):
        default_sampling({"num_beams": 4, "no_repeat_ngram_size": 0})


def test_length_and_stop_strings():
    assert default_length({}, 64, 10) == 64 and default_length({"max_new_tokens": 7}, 64, 10) == 7
    assert default_length({"max_new_tokens": 700}, 64, 10) == 10
    assert default_stop({"stop_strings": "END"}) == ("END",) and default_stop({"stop_strings": ["a", "b"]}) == (
        "a",
        "b",
    )


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_bpe(["the old river walks under the light of a stone"] * 4, 264, progress=False)
    config = ModelConfig(vocab_size=264, num_layers=1, embed_dim=16, num_heads=2, ffn_dim=16, context_length=32)
    return LanguageModel(config=config, params=noise(abstract_params(config), 0.5), tokenizer=tokenizer)


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": 5},
        {"eos_token_id": [5, 0], "pad_token_id": 3},
        {"eos_token_id": None, "bos_token_id": None},
        {"eos_token_id": [7, 999999, 5]},
        {},
    ],
)
def test_ids_are_written_as_they_were_read(lm, settings):
    stops = stop_ids_from(settings, lm.tokenizer, 264)
    kept = without_known(settings, lm.tokenizer, stops)
    again = with_known(kept, lm.tokenizer, stops, 264)
    assert {key: value for key, value in again.items() if value is not None} == {
        key: value for key, value in settings.items() if value is not None
    }
    assert with_known(kept, lm.tokenizer, (9,), 264)["eos_token_id"] == [9, 0]  # stop ids that were changed since


def test_the_model_s_settings_draw(lm):
    own = dataclasses.replace(lm, generation=DRAWN | {"top_k": 5, "max_new_tokens": 9})
    (by_default,) = generate(own, ["the old"], seed=3)
    (spelled,) = generate(lm, ["the old"], seed=3, max_new_tokens=9, sampling=Sampling(0.6, 5, 0.9, 0.1, 1.2))
    assert by_default == spelled and len(by_default) > 0


def test_settings_live_in_the_file_that_lies_there(lm, tmp_path):
    """People change generation_config.json by hand, in our directories too."""
    slmjax.save(lm, tmp_path / "m")
    assert slmjax.load(tmp_path / "m").generation == {}
    path = tmp_path / "m" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True, "temperature": 0.3}))
    again = slmjax.load(tmp_path / "m")
    assert again.generation == {"do_sample": True, "temperature": 0.3}
    slmjax.save(again, tmp_path / "h", format="huggingface")
    assert read_settings(tmp_path / "h")["temperature"] == 0.3


SCALED = [
    (RopeScaling("yarn", 4.0, 32), 40, 128),
    (RopeScaling("yarn", 4.0, 32), 128, 128),
    (RopeScaling("dynamic", 4.0, 40), 40, 160),
    (RopeScaling("linear", 2.0), 40, 80),
    (RopeScaling("llama3", 8.0, 32), 128, 128),
    (RopeScaling("llama3", 8.0, 32), 32, 256),
    (RopeScaling("longrope", 4.0, 32, short_factor=(1.0,) * 4, long_factor=(2.0,) * 4), 128, 128),
    (RopeScaling("longrope", 4.0, 32, short_factor=(1.0,) * 4, long_factor=(2.0,) * 4), 32, 128),
    (None, 40, 40),
]


@pytest.mark.parametrize(("scaling", "context", "extended"), SCALED)
def test_contexts_reach_as_far_as_scaling_extends_them(lm, scaling, context, extended):
    config = dataclasses.replace(lm.config, context_length=context, rope_scaling=scaling)
    longer = dataclasses.replace(lm, config=config)
    assert (longer.context_length, longer.longest_context) == (context, extended)
    with pytest.raises(UserError, match=f"the model's context is {extended}"):
        generate(longer, [[1] * extended], max_new_tokens=1)


@pytest.mark.slow
@pytest.mark.parametrize("scaling", [RopeScaling("dynamic", 4.0, 32), RopeScaling("yarn", 4.0, 32)])
def test_generation_goes_beyond_the_trained_context(lm, scaling):
    config = dataclasses.replace(lm.config, rope_scaling=scaling)
    longer = dataclasses.replace(lm, config=config)
    prompt = [int(i) for i in np.arange(40) % 200]
    assert len(generate(longer, [prompt], max_new_tokens=2, stop_at_eos=False)) == 1


def test_a_context_that_is_asked_for(lm, tmp_path, capsys):
    assert lm.with_context(None) is lm and lm.with_context(7).longest_context == 7
    with pytest.raises(UserError, match="the model's context is 7"):
        generate(lm.with_context(7), [[1] * 7], max_new_tokens=1)
    with pytest.warns(UserWarning, match="context of 64 is beyond the 32"):
        assert lm.with_context(64).context_length == 64
    with pytest.raises(UserError, match="at least 1"):
        lm.with_context(0)
    learned = dataclasses.replace(lm, config=dataclasses.replace(lm.config, position="learned"))
    with pytest.raises(UserError, match="positions that the model has learned"):
        learned.with_context(64)
    slmjax.save(lm, tmp_path / "m")
    arguments = ["generate", "--model", str(tmp_path / "m"), "--prompt", "the old river", "--max-new-tokens", "3"]
    assert main([*arguments, "--context", "4"]) == 2 and "the model's context is 4" in capsys.readouterr().err
    assert main([*arguments, "--context", "30"]) == 0


def test_a_run_s_description_keeps_its_base_s_settings(lm, tmp_path):
    run = Description(kind="run", model=lm.config, stop_ids=(3,), generation=DRAWN)
    run.write(tmp_path)
    assert Description.read(tmp_path).generation == DRAWN
    assert "generation" not in Description(kind="run", model=lm.config).to_dict()

"""lm-evaluation-harness's tasks: transformers through its own class, and slmjax, get the same requests and numbers."""

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (pip install slmjax[eval])")
pytest.importorskip("transformers", reason="parity with transformers needs it (pip install slmjax[parity])")

from tests.parity import harness_pair as pair

# With the module that reads its answers each, which takes seconds to import.
SCORED = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "openbookqa", "winogrande", "boolq", "commonsense_qa")
SCORED += ("social_iqa", "sciq", "mmlu_anatomy", "truthfulqa_mc1", "truthfulqa_mc2", "lambada_openai", "wikitext")
GENERATED = ("gsm8k", "minerva_math_algebra", "ifeval")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Both sides of each model by its name, made when first asked for."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def get(name, **settings):
        if name not in made:
            made[name] = pair.make_directory(name, folder / name.replace(" ", "-"))
        return pair.Theirs(made[name], **settings), pair.Ours(made[name], **settings)

    return get


@pytest.mark.slow
@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("name", list(pair.MODELS))
def test_every_task_gives_the_harness_numbers(models, name, shots):
    pair.assert_same(*models(name), SCORED, shots, limit=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(pair.MODELS))
def test_every_generation_gives_the_harness_texts(models, name):
    pair.assert_same(*models(name), GENERATED, 2, limit=3)


def test_what_is_longer_than_the_context_is_cut_as_the_harness_cuts_it(models, capsys):
    """A task of each kind, in a context that few of their requests fit into."""
    theirs, ours = models("sentencepiece", max_length=48)
    tasks = ("arc_easy", "lambada_openai", "wikitext", "gsm8k")
    pair.assert_same(theirs, ours, tasks, 1, limit=2, gen_kwargs={"max_gen_toks": 4})
    assert ours.truncated["gsm8k"] == 2 and ours.truncated["arc_easy"] > 2 and "wikitext" not in ours.truncated
    assert "longer than the context of 48 tokens" in capsys.readouterr().err
    assert ours.get_model_info()["truncated_requests"] == dict(ours.truncated)


@pytest.mark.slow
@pytest.mark.parametrize("multiturn", [False, True])
@pytest.mark.parametrize("name", ["no bos", "adds bos"])
def test_a_chat_template_gives_the_harness_prompts_and_numbers(models, name, multiturn):
    """With a system instruction, which one of the templates refuses, and with the beginning of an answer (bbh)."""
    settings = {"apply_chat_template": True, "fewshot_as_multiturn": multiturn, "system_instruction": "Be brief."}
    tasks = ("arc_easy", "mmlu_anatomy", "lambada_openai", "gsm8k")
    pair.assert_same(*models(name), tasks, 2, limit=2, **settings)

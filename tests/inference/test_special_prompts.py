"""Special tokens in prompts: text by default, tokens where they are asked for."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

import slmjax
from slmjax.cli.main import main
from slmjax.inference.generate import generate
from slmjax.inference.text import encode_prompt, special_tokens_in
from slmjax.tokenization.tokenizer import END_OF_TEXT


@settings(max_examples=60, deadline=None)
@given(before=st.text(max_size=8), after=st.text(max_size=8))
def test_a_prompt_s_special_tokens_are_tokens_or_text(tokenizer, before, after):
    prompt = before + END_OF_TEXT + after
    ids = encode_prompt(tokenizer, prompt)
    assert ids == [*tokenizer.encode(before), tokenizer.eos_id, *tokenizer.encode(after)]
    assert encode_prompt(tokenizer, prompt, special=False) == tokenizer.encode(prompt)
    assert special_tokens_in(tokenizer, prompt) == [END_OF_TEXT] and not special_tokens_in(tokenizer, before[:3])


def test_generation_reads_them_where_it_is_told_to(lm):
    prompt = f"the old{END_OF_TEXT}river"
    ids = [*lm.tokenizer.encode("the old"), lm.tokenizer.eos_id, *lm.tokenizer.encode("river")]
    assert generate(lm, [prompt], max_new_tokens=8, special=True) == generate(lm, [ids], max_new_tokens=8)
    assert generate(lm, [prompt], max_new_tokens=8) == generate(lm, [lm.tokenizer.encode(prompt)], max_new_tokens=8)


def test_the_command_says_that_it_read_text(lm, tmp_path, capsys):
    slmjax.save(lm, tmp_path / "model")
    command = ["generate", "--model", str(tmp_path / "model"), "--prompt", f"a{END_OF_TEXT}b", "--max-new-tokens", "3"]
    texts = []
    for option in ([], ["--special"]):
        assert main([*command, "--json", *option]) == 0
        printed = capsys.readouterr()
        texts.append(json.loads(printed.out)["text"])
        assert ("--special" in printed.err) == (not option)
    prompt = f"a{END_OF_TEXT}b"
    assert texts == [generate(lm, [prompt], max_new_tokens=3, special=special)[0] for special in (False, True)]

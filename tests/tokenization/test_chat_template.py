"""Templates render as in transformers; the assistant's turns are found to the character; hostile ones are stopped."""

import json
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.tokenization.chat_template import PLAIN_TEMPLATE, ChatTemplate
from slmjax.tokenization.tokenizer import load_tokenizer, train_bpe

NAMES = ("chatml", "qwen", "llama2", "llama3", "gemma", "phi3", "zephyr", "marked", "headers")
USER = {"role": "user", "content": "What is <b>2 & 2</b>?  "}
CHAT = [USER, {"role": "assistant", "content": " It's \n four. "}, {"role": "user", "content": "é☃?"}]
WHOLE = [*CHAT, {"role": "assistant", "content": "Yes"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *CHAT]
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "a < b & 'c'", "parameters": {"x": [1, None]}}}
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": "é<", "y": 1.5}}}
CALLS = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL], "audio": None},
    {"role": "tool", "content": "5"},
    {"role": "assistant", "content": "five"},
]


@pytest.fixture(scope="module")
def render_as_transformers(special_tokens):
    transformers = pytest.importorskip("transformers")
    import tokenizers

    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **special_tokens)

    def render(source, messages, **values):
        return reference.apply_chat_template(messages, chat_template=source, tokenize=False, **values)

    return render


@pytest.mark.parametrize("name", NAMES)
def test_rendering_equals_transformers(chat_templates, render_as_transformers, name):
    case, template = chat_templates[name]
    for messages in (CHAT[:1], CHAT, WHOLE, *([SYSTEM] if case.system else [])):
        for prompt in (False, True):
            expected = render_as_transformers(case.source, messages, add_generation_prompt=prompt)
            assert template.render(messages, add_generation_prompt=prompt) == expected
    if case.tools:
        expected = render_as_transformers(case.source, CALLS, tools=TOOLS)
        assert template.render(CALLS, tools=TOOLS) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ tools | tojson }}{{ documents[0].title }}{{ unknown }}{{ bos_token }}{{ enable }}",
        "{%- set ns = namespace(n=0) -%}\n{% for m in messages %}\n    {% if loop.index > 2 %}{% break %}{% endif %}\n"
        "{% set ns.n = ns.n + 1 %}\n{% continue %}{% endfor %}\n{{ ns.n }}",
        "{{ dict(a=1)|tojson }} {{ messages[0] | tojson(indent=2) }} {{ messages[0]|tojson(ensure_ascii=true) }}",
        "{% macro shout(x) %}{{ x | upper }}{% endmacro %}"
        "{{ shout(messages[0].content) }}{{ messages[-1].role.title() }}",
        "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}",
        "{% for m in messages if m.role == 'user' %}{{ m.content[:3] }}{{ '%s-%d' % (m.role, 3) }}{% endfor %}",
        "{% generation %}{{ messages | length }}{% endgeneration %}",
    ],
)
def test_the_rest_of_the_language_equals_transformers(render_as_transformers, special_tokens, source):
    messages = [{**USER, "reasoning": "hm"}, *CHAT[1:]]
    documents = [{"title": "<T>", "text": "x"}]
    expected = render_as_transformers(source, messages, tools=TOOLS, documents=documents, enable=True)
    template = ChatTemplate(source, special_tokens)
    assert template.render(messages, tools=TOOLS, documents=documents, variables={"enable": True}) == expected


texts = st.text(st.sampled_from("ab é☃\n<|:")).filter(str.strip)


@pytest.mark.parametrize("name", NAMES)
@given(contents=st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
@settings(deadline=None, max_examples=25)
def test_the_spans_are_what_the_assistant_wrote_and_nothing_else(chat_templates, name, contents):
    case, template = chat_templates[name]
    messages = [
        {"role": role, "content": content}
        for pair in contents
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    text, spans = template.render_with_spans(messages)
    assert text == template.render(messages)
    answers = [answer.strip() if case.trims else answer for _, answer in contents]
    ends = [case.end] * (len(answers) - 1) + [case.last_end or case.end]
    assert [text[begin:end] for begin, end in spans] == [
        answer + end for answer, end in zip(answers, ends, strict=True)
    ]


@pytest.mark.parametrize("name", ["qwen", "llama3"])
def test_calls_of_tools_are_the_assistants(chat_templates, name):
    case, template = chat_templates[name]
    text, spans = template.render_with_spans(CALLS, tools=TOOLS)
    call, answer = (text[begin:end] for begin, end in spans)
    assert '"name": "add"' in call
    assert call.endswith(case.end)
    assert answer == "five" + case.end
    assert not {"tool_response", "start_header_id", "im_start"} & set(call.replace("<", " ").replace("|", " ").split())


def test_turns_that_are_rendered_by_what_follows_are_found_too(special_tokens, thinking_template):
    template = ChatTemplate(thinking_template, special_tokens)
    messages = [{**m, "reasoning_content": "hm"} if m["role"] == "assistant" else m for m in WHOLE]
    text, spans = template.render_with_spans(messages)
    assert text.count("hm") == 1
    assert [text[a:b] for a, b in spans] == [
        WHOLE[1]["content"] + "<|im_end|>",
        "<think>\nhm\n</think>\n\nYes<|im_end|>",
    ]


def test_a_span_that_is_not_certain_is_an_error(special_tokens):
    hidden = "{% for m in messages %}{{ m.content | length }}{% endfor %}"
    with pytest.raises(UserError, match=r"does not show which text message 2.*generation"):
        ChatTemplate(hidden, special_tokens).render_with_spans(WHOLE)
    empty = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}{% generation %}{% endgeneration %}{% endif %}"
    )
    with pytest.raises(UserError, match="have nothing of this conversation"):
        ChatTemplate(empty, special_tokens).render_with_spans(WHOLE)
    with pytest.raises(UserError, match="no message of the assistant"):
        ChatTemplate(empty, special_tokens).render_with_spans([USER])


def test_the_plain_template_ends_an_answer_with_eos():
    template = ChatTemplate(PLAIN_TEMPLATE, {"eos_token": "</s>"})
    text, spans = template.render_with_spans(SYSTEM)
    assert text.startswith("System: Be brief.\n\nUser: ")
    assert [text[a:b] for a, b in spans] == [" " + CHAT[1]["content"] + "</s>"]
    assert template.render(SYSTEM, add_generation_prompt=True).endswith("Assistant:")


HOSTILE = {
    "a long range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "nested loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "ran for more"),
    "a giant string": ("{{ 'a' * 10**10 }}", "MemoryError"),
    "a giant width": ("{{ '%999999999999d' % 1 }}", "MemoryError"),
    "endless output": ("{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}", "more than 16,777,216 characters"),
    "one endless operation": (
        "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}"
        "{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
        "ran for more",
    ),
    "endless recursion": ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    "attributes": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "attributes by filter": ("{{ (''|attr('__class__')).x }}", "unsafe|UndefinedError|no attribute"),
    "attributes by format": ("{{ '{0.__class__.__mro__}'.format(messages) }}", "unsafe"),
    "globals": ("{{ raise_exception.__globals__['sys'] }}", "unsafe"),
    "the environment": (
        "{{ self.environment.filters.x }}{{ cycler.__init__.__globals__.os }}",
        "unsafe|UndefinedError",
    ),
    "a namespace's insides": ("{{ namespace(__class__=1) }}", "may not hold"),
    "a change of the messages": ("{{ messages.append(1) }}", "unsafe"),
    "an include": ("{% include '/etc/hostname' %}", "no loader|TypeError"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_gets_one_sentence(name):
    source, message = HOSTILE[name]
    template = ChatTemplate(source, {}, seconds=0.5)
    start = time.perf_counter()
    with pytest.raises(UserError, match=message) as caught:
        template.render(CHAT)
    assert time.perf_counter() - start < 30
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):  # and the next call is served anew
        template.render(CHAT)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ " + "(" * 5000 + ")" * 5000 + " }}", "{% generation %}", "x" * 2**21]
)
def test_a_template_that_does_not_compile_gets_one_sentence(source):
    with pytest.raises(UserError, match=r"not usable Jinja|more than the") as caught:
        ChatTemplate(source, {})
    assert "\n" not in str(caught.value)


def test_the_templates_own_refusal_is_the_users(chat_templates):
    with pytest.raises(UserError, match=r"refuses the conversation \(roles must alternate\)\.$"):
        chat_templates["llama2"][1].render([USER, USER])
    with pytest.raises(UserError, match=r"refuses the conversation \(no system role\)\.$"):
        chat_templates["gemma"][1].render_with_spans([SYSTEM[0], *WHOLE])


@pytest.mark.parametrize("messages", [[], ["hello"], [{"content": "x"}], [{"role": "user", "content": {1, 2}}]])
def test_what_is_no_conversation_is_refused(chat_templates, messages):
    with pytest.raises(UserError, match=r"empty|must be"):
        chat_templates["chatml"][1].render(messages)


def test_a_tokenizer_carries_its_template(tmp_path):
    tokenizer = train_bpe(["abc"], 257, progress=False)
    with pytest.raises(UserError, match="no chat template"):
        ChatTemplate.of(tokenizer)
    tokenizer.settings["chat_template"] = [
        {"name": "default", "template": "{{ eos_token }}"},
        {"name": "tool_use", "template": "{{ bos_token }}!"},
    ]
    assert ChatTemplate.of(tokenizer).render([USER]) == "<|endoftext|>"
    assert ChatTemplate.of(tokenizer, tools=True).render([USER]) == "<|endoftext|>!"
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].role }}", encoding="utf-8")
    template = ChatTemplate.of(load_tokenizer(tmp_path))
    assert template.render([USER]) == pickle.loads(pickle.dumps(template)).render([USER]) == "user"


def test_the_real_models_chat_is_rendered_as_its_reference(assets):
    directory = assets / "models" / "smollm2-135m-instruct"
    tokenizer = load_tokenizer(directory)
    chat = json.loads((directory / "reference_outputs.json").read_text())["chat"]
    text = ChatTemplate.of(tokenizer).render(chat["messages"], add_generation_prompt=True)
    assert text == chat["rendered"]
    assert tokenizer.encode(text, allow_special=True) == chat["prompt_ids"]

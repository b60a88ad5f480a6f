"""Messages to the text that a chat model was trained on, by the model's own Jinja template."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Self

from slmjax.errors import UserError
from slmjax.tokenization.assistant_spans import Rendering, Span, find_spans
from slmjax.tokenization.named_templates import named_templates
from slmjax.tokenization.template_renderer import TemplateRenderer, shorten
from slmjax.tokenization.tokenizer import Tokenizer

Message = Mapping[str, Any]  # role, content (text, or what else the template takes), tool_calls ...

# For models that were never given a format: it needs no token but eos, and no space is left before the answer, so that
# a tokenizer that joins a space to the word after it sees what it saw in pretraining.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "Assistant:{% generation %} {{ message['content'] }}{{ eos_token }}{% endgeneration %}\n\n"
    "{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names that one field has in different templates


class ChatTemplate:
    """A chat template: renders as transformers' `apply_chat_template` does, in a limited process of its own.

    Args:
        source: Jinja. It is a program of strangers: sandboxed, without files, bounded in time and memory.
        special_tokens: variables of the template by name, such as {"bos_token": "<s>"}.
        seconds: after which a rendering is given up.

    Raises:
        UserError: `source` does not compile.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, seconds: float = 10.0):
        self.source = source
        self.special_tokens = dict(special_tokens)
        self._renderer = TemplateRenderer(source, seconds)

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, tools: bool = False) -> Self:
        """The template that came with a tokenizer; of several named ones "default", or "tool_use" for `tools`.

        Raises:
            UserError: the tokenizer has none.
        """
        found = choose_template(tokenizer.settings.get("chat_template"), tools=tools)
        if found is None:
            raise UserError(
                "The model has no chat template: put a chat_template.jinja beside its tokenizer, or give it plain text."
            )
        return cls(found, template_tokens(tokenizer))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each with a role; fields that are None count as absent.
            add_generation_prompt: end with what comes before the assistant's answer.
            tools: JSON schemas of functions that the model may call.
            documents: texts to answer from, for templates that take them.
            variables: whatever else the template reads, such as {"enable_thinking": False}.

        Raises:
            UserError: the template refuses the conversation, fails, or exceeds its limits.
        """
        rendering = Rendering(_plain_messages(messages), add_generation_prompt)
        (answer,) = self._rendered([rendering], self._fixed(tools, documents, variables))
        return _text(answer)

    def render_with_spans(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[str, list[Span]]:
        """The text of a conversation, and the characters [begin, end) that the assistant wrote.

        A span holds what a model must produce: the answer, calls of tools, and what ends the turn; not the header
        before it, which the generation prompt supplies, nor white space after the end of the turn. The template's
        `{% generation %}` blocks are the spans where it has any; else they are found (`find_spans`), one a turn.

        Raises:
            UserError: as `render`; no message is the assistant's; or the spans cannot be told for certain.
        """
        plain = _plain_messages(messages)
        if all(message["role"] != "assistant" for message in plain):
            raise UserError("The conversation has no message of the assistant, so there is nothing to learn.")
        fixed = self._fixed(tools, documents, variables)
        if self._renderer.has_generation:
            return self._marked(plain, fixed)
        return find_spans(plain, lambda renderings: self._rendered(renderings, fixed))

    def _marked(self, messages: list[dict[str, Any]], fixed: dict[str, Any]) -> tuple[str, list[Span]]:
        nonce = secrets.token_hex(8)  # no text can hold the marks
        before, after = f"\ue000{nonce}\ue001", f"\ue001{nonce}\ue000"
        (answer,) = self._rendered([Rendering(messages, False)], fixed, (before, after))
        text, spans = "", []
        for piece in _text(answer).split(before):
            inside, end, rest = piece.partition(after)
            if end and inside:
                spans.append((len(text), len(text) + len(inside)))
            text += inside + rest
        if not spans or after in text:
            raise UserError(
                "The chat template's {% generation %} blocks have nothing of this conversation, or are nested."
            )
        return text, spans

    def _fixed(self, tools: Any, documents: Any, variables: Any) -> dict[str, Any]:
        listed = {"tools": _list(tools), "documents": _list(documents)}
        return {**self.special_tokens, **(variables or {}), **listed}

    def _rendered(
        self, renderings: Sequence[Rendering], fixed: dict[str, Any], marks: tuple[str, str] = ("", "")
    ) -> list[dict[str, Any]]:
        requests = [
            {
                "variables": {**fixed, "messages": r.messages, "add_generation_prompt": r.add_generation_prompt},
                "marks": marks,
            }
            for r in renderings
        ]
        try:
            return self._renderer.render(requests)
        except TypeError as error:
            raise UserError(f"Messages and tools must be plain text, numbers, lists and dicts ({error}).") from error


def choose_template(setting: Any, *, tools: bool = False) -> str | None:
    """The template of a tokenizer's setting `chat_template`, None where it has none.

    Of several named ones it is the one named "default", or "tool_use", if there, for `tools`.
    """
    named = named_templates(setting)
    return (named.get("tool_use") if tools else None) or named.get("default")


def template_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The special tokens that a template may write, by name: bos_token, eos_token ..., as transformers names them."""
    found = {f"{role}_token": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    names: dict[str, Any] = {name: tokenizer.id_to_token(id) for name, id in found.items() if id is not None}
    for name, token in tokenizer.settings.items():
        if name.endswith("_token"):
            names[name] = token.get("content") if isinstance(token, dict) else token
    extra = tokenizer.settings.get("extra_special_tokens")
    names |= extra if isinstance(extra, dict) else {}
    return {name: token for name, token in names.items() if isinstance(token, str)}


def _plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Without fields that are None, which templates would print; the reasoning under each name that they read."""
    if not messages:
        raise UserError("The conversation is empty: give it at least one message.")
    plain = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"Message {number} must be a dict with a role and a content, not {shorten(repr(message))}.")
        fields = {name: value for name, value in message.items() if value is not None}
        reasoning = next((fields[name] for name in _REASONING if name in fields), None)
        if reasoning is not None:
            fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        plain.append(fields)
    return plain


def _list(values: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    return None if values is None else [dict(value) for value in values]


def _text(answer: dict[str, Any]) -> str:
    if "text" in answer:
        return answer["text"]
    if answer["raised"]:
        raise UserError(f"The chat template refuses the conversation ({shorten(answer['error'])}).")
    raise UserError(f"The chat template cannot render the conversation ({shorten(answer['error'])}).")

"""Conversations to prompts, as lm-evaluation-harness's `hf` class has transformers render them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slmjax.console import warn
from slmjax.errors import UserError, did_you_mean
from slmjax.tokenization.chat_template import ChatTemplate, Message, template_tokens
from slmjax.tokenization.named_templates import DEFAULT, named_templates
from slmjax.tokenization.tokenizer import Tokenizer

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # transformers': put after the message that is to be continued


class ChatPrompts:
    """Prompts by one of a tokenizer's chat templates; its process begins with the first of them.

    variables: what else the template reads, such as {"enable_thinking": False}.
    """

    def __init__(self, tokenizer: Tokenizer, variables: Mapping[str, Any] | None = None):
        self._tokenizer, self._variables = tokenizer, dict(variables or {})
        self._name = DEFAULT
        self._template: ChatTemplate | None = None
        self._refuses_system = False

    def choose(self, name: str | None = None) -> str:
        """The source of the template that prompts are rendered with from now on; None: the default one.

        Raises:
            UserError: the tokenizer has no chat template, or none of this name.
        """
        templates = named_templates(self._tokenizer.settings.get("chat_template"))
        if not templates:
            raise UserError(
                "The model has no chat template, which was asked for: put a chat_template.jinja beside its tokenizer, "
                "or evaluate it without."
            )
        # Of a model with one template, a name is ignored, as the harness does.
        chosen = DEFAULT if name is None or set(templates) == {DEFAULT} else name
        if chosen not in templates:
            raise UserError(f"The model has no chat template named {chosen!r}; {did_you_mean(chosen, templates)}")
        if chosen != self._name:
            self._name, self._template = chosen, None
        return templates[chosen]

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of a conversation, up to where the assistant's answer begins.

        add_generation_prompt: False where the last message is the assistant's own beginning, which is to be continued.
        A template that refuses a system message gets the conversation without it.
        """
        if self._template is None:
            self._template = ChatTemplate(self.choose(self._name), template_tokens(self._tokenizer))
        without_system = [message for message in messages if message["role"] != "system"]
        if self._refuses_system or len(without_system) == len(messages):
            return self._render(without_system, add_generation_prompt)
        try:
            return self._render(messages, add_generation_prompt)
        except UserError:
            text = self._render(without_system, add_generation_prompt)
        warn("the chat template refuses system messages: they are left out")
        self._refuses_system = True
        return text

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        assert self._template is not None
        if add_generation_prompt:
            return self._template.render(messages, add_generation_prompt=True, variables=self._variables)
        *before, last = messages
        tagged = [*before, {**last, "content": last["content"] + _TAG}]
        text = self._template.render(tagged, variables=self._variables)
        at = text.rfind(_TAG.strip())
        if at < 0:
            raise UserError(
                "The chat template does not show the assistant's message that is to be continued: evaluate the task "
                "without the template."
            )
        return text[:at] if text.startswith(_TAG, at) else text[:at].rstrip()

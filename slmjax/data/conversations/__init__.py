"""Records to fine-tune on, and their tokens."""

from slmjax.moved import names_of

__getattr__ = names_of("slmjax.data.conversations.records", only=("Conversation", "Passage", "parse_record"))

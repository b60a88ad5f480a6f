"""Needles in a haystack: what a model finds again in a long text, by the text's length and the needle's depth."""

"""Texts that a stage's process wrote: JSON lets it say what neither a database nor a message can hold."""

from __future__ import annotations


def readable(text: str) -> str:
    """The text with a question mark for each lone surrogate and each NUL; files in a tar may be named so."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?")


def holdable(text: str) -> str:
    """The text as it is; raises ValueError where it has lone surrogates or NUL."""
    if readable(text) != text:
        raise ValueError("a text with lone surrogates or NUL")
    return text

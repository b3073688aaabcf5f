"""The engine's own exception; its codes stand in the table of `punnet.errors`."""

from __future__ import annotations


class EngineError(Exception):
    """A failure that the user can act on.

    Args:
        code: stable code, for instance "IMAGES_ONE_CLASS".
        message: what was wrong with which thing, with limit and actual value.
        remedy: what to do about it.
        details: names, limits and values, for programs.
    """

    def __init__(self, code: str, message: str, remedy: str, **details: object) -> None:
        super().__init__(code, message, remedy)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.details = {name: str(value) for name, value in details.items()}

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"

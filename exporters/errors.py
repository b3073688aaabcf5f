"""The exporters' own exceptions; the code of each stands in the error table of the package that uses them."""

from __future__ import annotations


class ExportError(Exception):
    """A network that can't be exported.

    Args:
        message: what failed, with names and values.
        remedy: what to do about it.
        details: names, limits and values, for programs.
    """

    code = "EXPORT_FAILED"

    def __init__(self, message: str, remedy: str, **details: object) -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy
        self.details = {name: str(value) for name, value in details.items()}

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


class BuildCancelledError(Exception):
    """The build was asked to stop, and its process is gone."""

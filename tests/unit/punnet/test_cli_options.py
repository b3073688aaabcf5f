"""Values of options that come as text."""

from __future__ import annotations

import pytest
import typer

from punnet.cli_options import class_counts


def test_counts_of_classes_are_read_from_settings() -> None:
    assert class_counts(["cat=20", "*=5", "a=b=0", "cat=30"]) == {"cat": 30, "*": 5, "a=b": 0}
    assert class_counts(None) is None
    assert class_counts([]) is None


@pytest.mark.parametrize("setting", ["cat", "cat=", "=3", "cat=-1", "cat=2.5", f"cat={2**63}"])
def test_what_is_no_count_of_a_class_is_refused(setting: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not CLASS=N"):
        class_counts([setting])

"""`--set key=value` reads each keyword of `compress` as its type."""

from __future__ import annotations

import pytest

from punnet.changed_options import changed_options, settable
from punnet.errors import InvalidRequest
from punnet.options import CompressOptions


def test_values_are_read_by_type_and_the_last_one_counts() -> None:
    changes = ["steps=10", "learning-rate=0.05", "mean=0.1,0.2,0.3", "targets=cpu,rtx", "score=pu", "steps=20"]
    assert changed_options(changes) == {
        "steps": 20,
        "learning_rate": 0.05,
        "mean": [0.1, 0.2, 0.3],
        "targets": ["cpu", "rtx"],
        "score": "pu",
    }


def test_minutes_are_set_under_the_name_of_the_option_too() -> None:
    assert changed_options(["max-minutes=30"]) == changed_options(["minutes=30"]) == {"minutes": 30.0}


def test_every_option_of_a_compression_can_be_set() -> None:
    assert set(CompressOptions.__annotations__) - settable().keys() <= {"request_id", "validate_only", "loss"}
    assert changed_options(["loss.kl=1", "loss.dkd=0.5", "compiled=true"]) == {
        "loss": {"kl": 1.0, "dkd": 0.5},
        "compiled": True,
    }


def test_counts_of_classes_are_set_together() -> None:
    assert changed_options(["class_floors=cat=20,*=5"]) == {"class_floors": {"cat": 20, "*": 5}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("steps", "is no key=value"),
        ("step=3", "'step' is no option"),
        ("steps=many", "'many' is no int"),
        ("mean=0.1,x", "is no Sequence"),
        ("class_caps=cat", "is no Mapping"),
        ("loss.kl=much", "'much' is no float"),
        ("compiled=maybe", "'maybe' is no bool"),
        ("request_id=a", "'request_id' is no option"),
    ],
)
def test_what_can_not_be_set_is_refused(change: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        changed_options([change])
    assert says in str(caught.value)
    assert caught.value.code == "REQUEST_INVALID"

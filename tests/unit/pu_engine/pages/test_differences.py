from __future__ import annotations

import math

import numpy as np
import pytest

from pu_engine.pages.differences import Confusion, differences

TEACHER = np.array([[4.0, 0.0, 0.0], [4.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]])
STUDENT = np.array([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 9.0, 0.0], [0.0, 4.0, 0.0], [4.0, 0.0, 0.0]])


def test_classes_are_counted_by_the_teacher() -> None:
    found = differences(TEACHER, STUDENT)
    assert found.images == 5
    assert found.class_images == (3, 1, 1)
    assert found.class_agreements == (1, 1, 0)


def test_the_most_frequent_confusion_comes_first() -> None:
    found = differences(TEACHER, STUDENT).confusions
    assert found == (Confusion(teacher=0, student=1, images=2), Confusion(teacher=2, student=0, images=1))


def test_the_worst_image_comes_first_and_images_in_agreement_are_none() -> None:
    worst = differences(TEACHER, STUDENT).worst
    assert [image.row for image in worst] == [2, 1, 4]
    p, rest = math.exp(4) / (math.exp(4) + 2), 1 / (math.exp(4) + 2)
    assert worst[1].kl == pytest.approx(4 * (p - rest))


def test_equal_answers_have_no_differences() -> None:
    found = differences(TEACHER, TEACHER)
    assert (found.confusions, found.worst) == ((), ())


def test_logits_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(4, 3\)"):
        differences(TEACHER, STUDENT[:4])

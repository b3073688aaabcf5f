"""Which probed images are shown, and what is said of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pu_engine.imaging.images import decode_resized
from pu_engine.pages import inspection_samples
from pu_engine.pages.inspection_samples import Confusion, Guess
from pu_engine.teacher import probed
from pu_engine.teacher.labels import ClassOrder
from pu_engine.teacher.probe import Catalogue
from pu_engine.teacher.probed import Probed, ProbedImage
from pu_engine.types import File, LabelledImages, Preprocessing

NAMES = ("ant", "bee", "cow")


def asked(answers: list[tuple[str, list[float]]]) -> Probed:
    """Labels with the teacher's logits."""
    rows = tuple(
        ProbedImage(key=f"{label}/{i}", label=label, index=NAMES.index(label)) for i, (label, _) in enumerate(answers)
    )
    return Probed(rows=rows, logits=np.array([logits for _, logits in answers], np.float32))


def test_pairs_are_counted_by_label_and_answer() -> None:
    right, wrong = [5.0, 0.0, 0.0], [0.0, 5.0, 0.0]
    found = asked([("ant", right), ("ant", wrong), ("ant", wrong), ("cow", right), ("bee", wrong)])
    assert inspection_samples.confusions(found, NAMES) == [
        Confusion(label="ant", predicted="bee", images=2, of=3),
        Confusion(label="cow", predicted="ant", images=1, of=1),
    ]


def test_surest_mistakes_come_first_and_classes_take_turns() -> None:
    found = asked(
        [("ant", [1.0, 0, 0])] * 40 + [("bee", [0, 1.0, 0])] * 2 + [("cow", [2.0, 0, 0]), ("cow", [9.0, 0, 0])]
    )
    right, wrong = inspection_samples.chosen_rows(found)
    assert wrong == [43, 42]
    assert len(right) == inspection_samples.SHOWN_RIGHT
    assert {40, 41} <= set(right)


@pytest.mark.parametrize("channels", ["RGB", "BGR", "GRAY"])
def test_picture_is_what_the_teacher_gets_turned_back_to_rgb(
    channels: str, tmp_path: Path, pack: Callable[[Path, Mapping[str, bytes]], File]
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(buffer, "PNG")
    tar = pack(tmp_path / "i.tar", {"ant/0": buffer.getvalue()})
    size = 1 if channels == "GRAY" else 3
    preprocessing = Preprocessing(
        layout="NCHW", channels=channels, scale=1.0, mean=(0.0,) * size, std=(1.0,) * size, dtype="float32",
        height=12, width=16,
    )  # fmt: skip
    (sample,) = inspection_samples.samples(
        [0], asked([("ant", [0.0, 1.0, 0.0])]), LabelledImages(tar=tar), preprocessing, NAMES
    )
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(sample.source.partition(",")[2]))))
    expected = decode_resized(buffer.getvalue(), 12, 16, size)
    np.testing.assert_array_equal(shown, expected[..., 0] if size == 1 else expected)
    first = sample.guesses[0]
    assert first == Guess(name="bee", probability=first.probability, right=False)
    assert first.probability == pytest.approx(np.e / (np.e + 2))
    assert sample.guesses[1].right
    assert (sample.label, sample.key) == ("ant", "ant/0")


def test_huge_logits_give_probabilities() -> None:
    shares = inspection_samples.probabilities(np.array([[9000.0, 0.0], [-9000.0, -9000.0]], np.float32))
    np.testing.assert_array_equal(shares, [[1.0, 0.0], [0.5, 0.5]])


def test_what_was_probed_comes_back(tmp_path: Path) -> None:
    found = Catalogue(
        keys=("ant/a", "bee/b", "ant/c"), labels=("ant", "bee", "ant"), digests=("0", "1", "2"),
        held_out=(False, False, True), native=(4, 4), sizes=1, warnings=(),
    )  # fmt: skip
    order = ClassOrder(source="stated", index={"ant": 2, "bee": 0})
    probed.write(tmp_path, found, [1, 0], np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), order)
    back = probed.read(tmp_path)
    assert back.rows == (ProbedImage(key="bee/b", label="bee", index=0), ProbedImage(key="ant/a", label="ant", index=2))
    assert back.logits.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert back.logits.dtype == np.float32

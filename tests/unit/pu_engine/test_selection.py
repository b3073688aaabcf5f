"""The stage on written scorings: `write_case` lays out intake, scoring and pool as the stages before it would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from pu_engine import selection
from pu_engine.errors import EngineError
from pu_engine.jsonform import to_json
from pu_engine.picking.pool_order import PoolOrder, junk_mask
from pu_engine.pools.pool import POOL, pool_folder
from pu_engine.pools.pool_index import GOOD, index_name, write_index
from pu_engine.pools.pool_types import Pool, Shard
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256
from pu_engine.scores.score_types import Precision, Scores
from pu_engine.selection import default_count, run
from pu_engine.types import (
    File,
    Folder,
    LabelledEntry,
    Preprocessing,
    Selection,
    SelectionInputs,
    SelectionOptions,
    Tap,
    Teacher,
)
from tests.unit.conftest import FACTS

CLASSES, WIDTHS = 3, (6, 8)
WIDTH = sum(WIDTHS)
Floats = NDArray[np.float64]
Pack = Callable[[Path, Mapping[str, bytes]], File]
MakeJpeg = Callable[..., bytes]


@dataclass(frozen=True)
class Case:
    """What the teacher is to say: of the pool and of the labelled images."""

    pool_features: Floats  # [N, D]
    pool_logits: Floats  # [N, K]
    labelled_features: Floats
    labelled_classes: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    taps: bool = True
    spreads: bool = False  # the features end with the spreads of the first tap
    leaked: int = 0  # the pool's first images are the first labelled ones
    alike: int = 0  # so many of the pool's first images look like the first
    files: tuple[bytes, ...] = ()  # what the pool's first images came as


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_case(images: int = 1200, labelled: int = 120, own_share: float = 0.0, *, held_out_share: float = 0.1) -> Case:
    generator = np.random.default_rng(11)
    labels = np.arange(labelled) % CLASSES
    centres = generator.normal(size=(CLASSES, WIDTH)) * 0.5
    shift = np.linspace(0.0, 4.0, WIDTH)
    classes = generator.choice(CLASSES, images, p=[0.6, 0.35, 0.05])
    own = generator.random(images) < own_share
    features = generator.normal(size=(images, WIDTH)) + centres[classes] + own[:, None] * shift
    logits = generator.normal(size=(images, CLASSES))
    logits[np.arange(images), classes] += 6.0
    return Case(
        pool_features=features,
        pool_logits=logits,
        labelled_features=generator.normal(size=(labelled, WIDTH)) + centres[labels] + shift,
        labelled_classes=labels,
        held_out=np.arange(labelled) < held_out_share * labelled,
    )


def write_result(folder: Path, result: object) -> Folder:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"result": to_json(result)}))
    return Folder(path=str(folder), sha256="0" * 64)


def write_case(root: Path, case: Case, options: SelectionOptions | None = None) -> SelectionInputs:
    taps = tuple(Tap(name=f"tap{i}", source=f"layer{i}", width=w) for i, w in enumerate(WIDTHS)) if case.taps else ()
    if case.spreads:
        taps = (replace(taps[0], spread="tap0_spread"), *taps[1:])
    cuts = [0, len(case.pool_features) // 3, len(case.pool_features)]
    shards = ("shard-00000", "shard-00001")
    entries = [
        LabelledEntry(key=f"{k}/{i}", label=f"class{k}", index=int(k), held_out=bool(h), sha256=digest(f"labelled {i}"))
        for i, (k, h) in enumerate(zip(case.labelled_classes, case.held_out, strict=True))
    ]
    preprocessing = Preprocessing(
        layout="NCHW", channels="RGB", scale=1.0, mean=(0.0,), std=(1.0,), dtype="float32", height=32, width=32
    )
    names = tuple(f"class{k}" for k in range(CLASSES))
    teacher = Teacher(
        preprocessing=preprocessing,
        output="logits",
        batch=None,
        classes=CLASSES,
        class_order={name: k for k, name in enumerate(names)},
        class_names=names,
        taps=taps,
        accuracy=0.9,
        accuracy_low=0.8,
        accuracy_high=0.95,
        images=len(entries),
        hypotheses=(),
        parameters=1,
        macs=1,
        opset=20,
        producer="test",
        facts=FACTS,
        teacher_sha256="0" * 64,
        teacher_bytes=1,
        display_name="teacher.onnx",
    )
    intake = write_result(root / "intake", teacher)
    (root / "intake" / "labelled.json").write_text(json.dumps(to_json(entries)))
    scores = Scores(
        shards=shards,
        images=len(case.pool_features),
        labelled=len(entries),
        classes=CLASSES,
        views=("clean", "matched"),
        taps=taps,
        provider="cpu",
        precision="fp32",
        precision_why=Precision(name="fp32", why="int8 is for the CPU"),
        shard_keys=tuple("0" * 64 for _ in shards),
        taken_over=0,
        images_per_second=1.0,
    )
    scoring = write_result(root / "scoring", scores)
    noise = np.random.default_rng(5).normal(size=(len(entries), CLASSES))  # as the pool's logits have
    labelled_logits = np.eye(CLASSES)[case.labelled_classes] * 6.0 + noise
    write_arrays(root / "scoring", "labelled", labelled_logits, case.labelled_features)
    for name, start, stop in zip(shards, cuts[:-1], cuts[1:], strict=True):
        write_arrays(root / "scoring", name, case.pool_logits[start:stop], case.pool_features[start:stop])
    return SelectionInputs(
        intake=intake,
        scoring=scoring,
        pool=write_pool(root / "pool", shards, cuts, case),
        selection=options or SelectionOptions(),
        steps=100,
        batch_size=96,
    )


def write_arrays(folder: Path, name: str, logits: Floats, features: Floats) -> None:
    np.save(folder / f"{name}.logits.npy", np.stack([logits + 0.1, logits - 0.1], axis=1).astype(np.float32))
    np.save(folder / f"{name}.features.npy", np.stack([features, features], axis=1).astype(np.float16))


def index_row(i: int, case: Case | None) -> dict[str, object]:
    source_sha256 = bytes.fromhex(digest(f"labelled {i}" if case and i < case.leaked else f"pool {i}"))
    if case and i < len(case.files):
        source_sha256 = hashlib.sha256(case.files[i]).digest()
    return {
        "key": f"{i:06}.jpg",
        "status": GOOD,
        "reason": "",
        "offset": 0,
        "size": 1,
        "sha256": source_sha256,
        "source_sha256": source_sha256,
        "format": "jpeg",
        "width": 1,
        "height": 1,
        "phash": i,
        "duplicate_of": None,
        "near_duplicate_of": "000000.jpg" if case and 0 < i < case.alike else None,
    }


def write_pool(folder: Path, shards: tuple[str, ...], cuts: list[int], case: Case | None = None) -> Folder:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for shard, start, stop in zip(shards, cuts[:-1], cuts[1:], strict=True):
        write_index(folder / index_name(shard), [index_row(i, case) for i in range(start, stop)])
        index_sha256 = file_sha256(folder / index_name(shard))
        found.append(Shard(name=shard, sha256="0" * 64, size=1, entries=stop - start, index_sha256=index_sha256))
    pool = Pool(
        name="test", images=cuts[-1], bad_images=0, duplicates=0, near_duplicates=0, size=1, shards=tuple(found)
    )
    (folder / POOL).write_text(json.dumps(to_json(pool)))
    return pool_folder(folder)


def select(tmp_path: Path, case: Case, options: SelectionOptions) -> tuple[Selection, pa.Table]:
    out = tmp_path / "out"
    out.mkdir(parents=True)
    selection = run(write_case(tmp_path, case, options), out, SilentProgress())
    return selection, pq.read_table(out / "selection.parquet")


def test_a_row_for_each_image_in_pool_order(tmp_path: Path) -> None:
    selection, table = select(tmp_path, make_case(), SelectionOptions(score="e2", count=90))
    assert table.column_names == ["key", "score", "class", "probability", "weight", "picked", "why"]
    assert table["key"].to_pylist() == [f"{i:06}.jpg" for i in range(1200)]
    assert sum(table["picked"].to_pylist()) == selection.picked == 90
    assert table["weight"].to_pylist() == [float(p) for p in table["picked"].to_pylist()]
    assert set(table["why"].to_pylist()) == {"picked", "below the quota of its class"}


def test_class_and_probability_are_the_teachers(tmp_path: Path) -> None:
    case = make_case()
    _, table = select(tmp_path, case, SelectionOptions(score="energy", count=30))
    probability = np.exp(case.pool_logits) / np.exp(case.pool_logits).sum(axis=1, keepdims=True)
    assert table["class"].to_pylist() == case.pool_logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(table["probability"].to_numpy(), probability.max(axis=1), rtol=1e-5)


def test_balanced_shares_what_a_poor_class_lacks_and_names_it(tmp_path: Path) -> None:
    selection, _ = select(tmp_path, make_case(), SelectionOptions(score="energy", count=600))
    poor = selection.class_available[2]
    assert poor < 100
    assert selection.class_counts[2] == poor
    assert abs(selection.class_counts[0] - selection.class_counts[1]) <= 200
    assert sum(selection.class_counts) == 600
    found = selection.poor_classes[0]
    assert (found.name, found.available, found.wanted) == ("class2", poor, 200)
    nearest = f"class2 ({poor} of 200; nearest {found.nearest}, taken for {found.nearest_class})"
    assert [w for w in selection.warnings if nearest in w]


def test_floors_and_caps_bound_the_quotas_of_named_classes(tmp_path: Path) -> None:
    floors, caps = {"class1": 250}, {"*": 280, "class2": 10}
    options = SelectionOptions(score="energy", count=600, class_floors=floors, class_caps=caps)
    selection, _ = select(tmp_path, make_case(), options)
    assert selection.class_counts == (280, 280, 10)
    assert selection.poor_classes == ()


def test_of_images_that_look_alike_the_best_is_picked(tmp_path: Path) -> None:
    case = replace(make_case(), alike=40)
    selection, table = select(tmp_path, case, SelectionOptions(score="confidence", rule="top", count=1200))
    score, picked = table["score"].to_numpy()[:40], table["picked"].to_numpy()[:40]
    assert picked.sum() == 1
    assert score[picked] == score.max()
    assert (selection.look_alikes, selection.picked) == (39, 1161)
    assert set(table["why"].to_pylist()) == {"picked", "looks like a better one"}


def test_look_alikes_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    options = SelectionOptions(score="random", count=1200, keep_look_alikes=True)
    selection, _ = select(tmp_path, replace(make_case(), alike=40), options)
    assert (selection.look_alikes, selection.picked) == (0, 1200)


def test_excluded_images_are_never_picked(tmp_path: Path, make_jpeg: MakeJpeg, pack: Pack) -> None:
    images = {f"a/{i}.jpg": make_jpeg(seed=i, height=64, width=64) for i in range(3)}
    case = replace(make_case(), files=tuple(images.values()))
    options = SelectionOptions(score="random", count=1200, excluded=pack(tmp_path / "excluded.tar", images))
    selection, table = select(tmp_path, case, options)
    assert [i for i, why in enumerate(table["why"].to_pylist()) if why == "excluded"] == [0, 1, 2]
    assert (selection.excluded, selection.picked) == (3, 1197)
    assert any(text.startswith("3 pool images are, or look like, images to exclude") for text in selection.warnings)


def test_outputs_without_labelled_images_get_no_share(tmp_path: Path) -> None:
    case = replace(make_case(), labelled_classes=np.arange(120) % 2)
    selection, _ = select(tmp_path, case, SelectionOptions(score="energy", count=301))
    assert sorted(selection.class_counts) == [0, 150, 151]
    assert selection.class_counts[2] == 0


def test_top_takes_the_best_whatever_their_class(tmp_path: Path) -> None:
    selection, table = select(tmp_path, make_case(), SelectionOptions(score="confidence", rule="top", count=50))
    score, picked = table["score"].to_numpy(), table["picked"].to_numpy()
    assert score[picked].min() == selection.threshold >= score[~picked].max()


def test_threshold_takes_all_above_a_quantile(tmp_path: Path) -> None:
    options = SelectionOptions(score="relative_mahalanobis", rule="threshold", threshold=0.75)
    selection, table = select(tmp_path, make_case(), options)
    assert selection.picked == 300
    assert set(table["why"].to_pylist()) == {"picked", "below the threshold"}


def test_random_follows_from_the_seed(tmp_path: Path) -> None:
    inputs = write_case(tmp_path, make_case(), SelectionOptions(score="random", count=50))
    picked = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        run(replace(inputs, seed=seed), tmp_path / name, SilentProgress())
        picked.append(file_sha256(tmp_path / name / "selection.parquet"))
    assert picked[0] == picked[1] != picked[2]


def test_random_reads_no_features(tmp_path: Path) -> None:
    inputs = write_case(tmp_path, make_case(), SelectionOptions(score="random", count=50))
    for path in (tmp_path / "scoring").glob("*.features.npy"):
        path.unlink()
    assert run(inputs, tmp_path, SilentProgress()).picked == 50


def test_auto_takes_the_teachers_order_where_the_source_is_absent(tmp_path: Path) -> None:
    selection, _ = select(tmp_path, make_case(images=2000), SelectionOptions())
    assert selection.score == "content"
    assert selection.prior is not None
    assert selection.prior < 0.02
    assert selection.prior_bound is not None
    assert selection.prior < 0.4 * selection.prior_bound
    assert selection.separated is not None
    assert f"{selection.separated:.1%} of labelled images" in selection.why
    assert any("hardly any pool image" in warning for warning in selection.warnings)


def test_auto_takes_the_pu_order_where_the_source_is_present(tmp_path: Path) -> None:
    case = make_case(images=2000, labelled=240, own_share=0.25)
    selection, table = select(tmp_path, case, SelectionOptions(rule="top", count=330))
    assert selection.score == "pu"
    assert selection.prior == pytest.approx(0.25, abs=0.07)
    own = case.pool_features[:, -4:].mean(axis=1) > 1.8  # the shift is about 3.5 there
    found = own[table["picked"].to_numpy()].mean()
    assert found > 0.95
    assert selection.prior is not None
    assert selection.prior_low is not None
    assert selection.prior_high is not None
    assert selection.prior_low <= selection.prior <= selection.prior_high
    assert selection.expected is not None
    assert selection.expected.precision == pytest.approx(found, abs=0.15)
    assert selection.expected.recall == pytest.approx(330 * found / own.sum(), abs=0.25)


def with_spreads(case: Case, shift: float) -> Case:
    """The case with spreads of which those of the labelled images and of the pool's first fifth are larger."""
    generator = np.random.default_rng(7)
    pool = generator.normal(size=(len(case.pool_features), WIDTHS[0]))
    pool[: len(pool) // 5] += shift
    labelled = generator.normal(size=(len(case.labelled_features), WIDTHS[0])) + shift
    return replace(
        case,
        spreads=True,
        pool_features=np.concatenate([case.pool_features, pool], axis=1),
        labelled_features=np.concatenate([case.labelled_features, labelled], axis=1),
    )


def test_the_source_classifier_sees_the_spread_of_the_taps(tmp_path: Path) -> None:
    case = make_case(images=2000, labelled=240, own_share=1.0)  # the means say nothing
    selection, table = select(tmp_path, with_spreads(case, 3.0), SelectionOptions(rule="top", count=330))
    assert selection.score == "pu"
    assert table["picked"].to_numpy()[:400].mean() > 0.75


def test_the_content_score_sees_the_spread_of_the_taps(tmp_path: Path) -> None:
    case = with_spreads(make_case(), 3.0)
    _, table = select(tmp_path, case, SelectionOptions(score="content", rule="top", count=60))
    picked = table["picked"].to_numpy()
    assert picked[: len(picked) // 5].mean() > 2 * picked.mean()


def test_e2_sees_the_means_alone(tmp_path: Path) -> None:
    digests = []
    for name, shift in (("a", 0.0), ("b", 3.0)):
        select(tmp_path / name, with_spreads(make_case(), shift), SelectionOptions(score="e2", count=60))
        digests.append(file_sha256(tmp_path / name / "out" / "selection.parquet"))
    assert digests[0] == digests[1]


def test_the_view_that_shows_the_source_is_heard(tmp_path: Path) -> None:
    inputs = write_case(tmp_path, make_case(images=2000), SelectionOptions())
    for path in (tmp_path / "scoring").glob("shard-*.features.npy"):
        features = np.load(path)
        labelled = np.load(tmp_path / "scoring" / "labelled.features.npy")
        features[:, 1] = labelled[np.arange(len(features)) % len(labelled), 1]  # the matched view hides it
        np.save(path, features)
    (tmp_path / "out").mkdir()
    selection = run(inputs, tmp_path / "out", SilentProgress())
    assert selection.score == "content"
    assert "clean view" in selection.why


def test_a_score_without_a_prior_makes_no_source_test(tmp_path: Path) -> None:
    selection, _ = select(tmp_path, make_case(), SelectionOptions(score="energy", count=30))
    assert (selection.prior, selection.prior_bound, selection.separated) == (None, None, None)


def test_a_given_prior_is_used_and_said(tmp_path: Path) -> None:
    selection, _ = select(tmp_path, make_case(), SelectionOptions(prior=0.01))
    assert (selection.score, selection.prior, selection.prior_given) == ("content", 0.01, True)


def test_a_repeated_run_gives_the_same_bytes(tmp_path: Path) -> None:
    inputs = write_case(tmp_path, make_case(), SelectionOptions())
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(inputs, tmp_path / name, SilentProgress())
        digests.add(file_sha256(tmp_path / name / "selection.parquet"))
    assert len(digests) == 1


def test_the_callers_threads_come_back(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    select(tmp_path, make_case(), SelectionOptions(score="e2", count=60))
    assert torch.get_num_threads() == 2


def test_held_out_images_have_no_say(tmp_path: Path) -> None:
    case = make_case()
    moved = case.labelled_features.copy()
    moved[case.held_out] += 50.0
    digests = []
    for name, features in (("a", case.labelled_features), ("b", moved)):
        select(tmp_path / name, replace(case, labelled_features=features), SelectionOptions(score="e2", count=60))
        digests.append(file_sha256(tmp_path / name / "out" / "selection.parquet"))
    assert digests[0] == digests[1]


def test_held_out_images_in_the_pool_are_never_picked(tmp_path: Path) -> None:
    case = replace(make_case(), leaked=20)  # the first 12 labelled images are held out
    selection, table = select(tmp_path, case, SelectionOptions(score="random", count=1200))
    assert [i for i, why in enumerate(table["why"].to_pylist()) if why == "held out"] == list(range(12))
    assert not table["picked"].to_numpy()[:12].any()
    assert table["picked"].to_numpy()[12:].all()
    assert any(text.startswith("12 pool images are held-out") for text in selection.warnings)


def test_junk_is_dropped_but_never_more_than_a_fiftieth(tmp_path: Path) -> None:
    case = make_case()
    features = case.pool_features.copy()
    features[:40] += np.random.default_rng(0).normal(size=(40, WIDTH)) * 60.0
    _, table = select(tmp_path, replace(case, pool_features=features), SelectionOptions(count=1200, prior=0.01))
    junk = [i for i, why in enumerate(table["why"].to_pylist()) if why == "junk"]
    assert 0 < len(junk) <= 24
    assert max(junk) < 40
    assert not table["picked"].to_numpy()[junk].any()


def test_a_pool_without_outliers_loses_nothing() -> None:
    distances = np.random.default_rng(0).chisquare(20, 5000)
    assert not junk_mask(distances * 10, distances, 1.0).any()


def test_an_outlier_that_fits_the_labelled_images_stays() -> None:
    to_pool = np.append(np.random.default_rng(0).chisquare(20, 500), 1e6)
    assert junk_mask(np.full(501, 9.0), to_pool, 8.0).sum() == 1
    assert junk_mask(np.append(np.full(500, 9.0), 5.0), to_pool, 8.0).sum() == 0


def test_two_classes_of_five_images_and_a_constant_pool_stay_finite(tmp_path: Path) -> None:
    case = make_case(images=200, labelled=10, held_out_share=0.2)
    flat = replace(
        case,
        labelled_classes=np.arange(10) % 2,
        pool_features=np.ones((200, WIDTH)),
    )
    selection, table = select(tmp_path, flat, SelectionOptions())
    assert np.isfinite(table["score"].to_numpy()).all()
    assert selection.score == "content"
    assert selection.picked > 0


def test_a_teacher_without_taps_is_read_by_its_logits(tmp_path: Path) -> None:
    selection, table = select(tmp_path, replace(make_case(), taps=False), SelectionOptions(score="e2", count=30))
    assert selection.picked == 30
    assert np.isfinite(table["score"].to_numpy()).all()


def test_recovered_logits_have_no_energy_and_that_is_said(tmp_path: Path) -> None:
    inputs = write_case(tmp_path, make_case(), SelectionOptions(score="energy", count=30))
    for path in sorted((tmp_path / "scoring").glob("shard-*.logits.npy")):
        views = np.load(path) + np.random.default_rng(1).normal(size=(1, 2, CLASSES))  # the mirror is another image
        np.save(path, (views - np.log(np.exp(views).sum(axis=2, keepdims=True))).astype(np.float32))
    selection = run(inputs, tmp_path, SilentProgress())
    table = pq.read_table(tmp_path / "selection.parquet")
    np.testing.assert_allclose(table["score"].to_numpy(), table["probability"].to_numpy())
    assert any("energy is constant" in warning for warning in selection.warnings)
    assert len(set(table["score"].to_pylist())) > 1000


@pytest.mark.parametrize(
    ("pool_images", "draws", "expected"),
    [
        (40_000, 144_000, 8_000),
        (40_000, 576_000, 32_000),
        (40_000, 5_000_000, 40_000),
        (1_000_000, 144_000, 36_000),
        (40_000, 48_000, 8_000),
        (10_000, 144_000, 3_600),
        (20_000, 144_000, 4_000),
        (3_000, 144_000, 3_000),
        (10, 1, 1),
    ],
)
def test_the_default_count_grows_with_the_training(pool_images: int, draws: int, expected: int) -> None:
    assert default_count(pool_images, draws) == expected


@pytest.mark.parametrize(
    "options",
    [
        SelectionOptions(score="entropy"),
        SelectionOptions(rule="best"),
        SelectionOptions(count=0),
        SelectionOptions(rule="threshold"),
        SelectionOptions(rule="threshold", threshold=2.0),
        SelectionOptions(prior=1.0),
        SelectionOptions(rule="top", class_caps={"class0": 3}),
        SelectionOptions(class_caps={"class9": 3}),
        SelectionOptions(class_floors={"class0": -1}),
        SelectionOptions(class_floors={"*": 5}, class_caps={"class1": 4}),
        SelectionOptions(score="random", count=6, class_floors={"*": 4}),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, options: SelectionOptions) -> None:
    with pytest.raises(EngineError) as raised:
        run(write_case(tmp_path, make_case(images=30, labelled=12), options), tmp_path, SilentProgress())
    assert raised.value.code == "REQUEST_INVALID"


@pytest.mark.parametrize(
    ("images", "options"),
    [(2, SelectionOptions(score="random")), (50, SelectionOptions(score="random", count=2))],
)
def test_fewer_picks_than_classes_are_too_poor(tmp_path: Path, images: int, options: SelectionOptions) -> None:
    with pytest.raises(EngineError) as raised:
        run(write_case(tmp_path, make_case(images=images), options), tmp_path, SilentProgress())
    assert raised.value.code == "POOL_TOO_POOR"


def test_scores_of_another_pool_are_refused(tmp_path: Path) -> None:
    inputs = write_case(tmp_path, make_case(images=60))
    other = write_pool(tmp_path / "other", ("shard-00000",), [0, 61])
    with pytest.raises(EngineError, match="61 good images") as raised:
        run(replace(inputs, pool=other), tmp_path, SilentProgress())
    assert raised.value.code == "STAGE_PROTOCOL"


def test_no_usable_labelled_image_is_refused(tmp_path: Path) -> None:
    case = make_case(images=60)
    with pytest.raises(EngineError) as raised:
        run(write_case(tmp_path, replace(case, held_out=np.ones(120, dtype=bool))), tmp_path, SilentProgress())
    assert raised.value.code == "IMAGES_MISSING"


@pytest.mark.parametrize(
    ("name", "options", "draws", "kept"),
    [
        ("pu", SelectionOptions(), 576_000, True),
        ("pu", SelectionOptions(), 144_000, False),
        ("e2", SelectionOptions(), 576_000, False),
        ("pu", SelectionOptions(count=4000), 576_000, False),
        ("pu", SelectionOptions(rule="top"), 576_000, False),
    ],
)
def test_long_trainings_keep_the_whole_pool_where_the_probability_is_known(
    name: str, options: SelectionOptions, draws: int, kept: bool
) -> None:
    order = PoolOrder(score=np.zeros(3), name=name, why="", junk=np.zeros(3, np.bool_))
    assert selection.keeps_all(order, options, draws) == kept

"""Digit classifiers over flat rows: scikit-learn, LightGBM and XGBoost."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.frameworks.digits import GRAY_SIDE, LEVELS, Exported, Pixels, convention
from tests.frameworks.digits import gray_digits as gray

PIXELS = GRAY_SIDE**2


def _levels(images: Pixels) -> NDArray[np.float32]:
    """Rows of 0..16, as the data set has them."""
    return (images.reshape(len(images), -1) * np.float32(LEVELS / 255)).astype(np.float32)


def _unit(images: Pixels) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def _scikit(model: Any, *, unit: bool = False, zipmap: bool | str = True, taps: int = 1) -> Exported:
    from skl2onnx import to_onnx

    data, prepare = gray(), _unit if unit else _levels
    model.fit(prepare(data.images), data.labels)
    file = to_onnx(model, prepare(data.images[:1]), options={id(model): {"zipmap": zipmap}}).SerializeToString()
    return Exported(
        file=file,
        documented=convention("flat", "GRAY", 1 / 255 if unit else LEVELS / 255),
        output="probabilities",
        batch=None,
        predict=lambda images: model.predict_proba(prepare(images)),
        taps=taps,
    )


def scikit_mlp() -> Exported:
    """Two hidden layers, probabilities as a tensor."""
    from sklearn.neural_network import MLPClassifier

    return _scikit(MLPClassifier((48, 32), max_iter=40, random_state=0), unit=True, zipmap=False, taps=2)


def scikit_mlp_zipmap() -> Exported:
    """The same with its probabilities as a list of dictionaries."""
    from sklearn.neural_network import MLPClassifier

    return _scikit(MLPClassifier((48, 32), max_iter=40, random_state=0), taps=2)


def scikit_forest() -> Exported:
    """Sixty trees, probabilities as a tensor."""
    from sklearn.ensemble import RandomForestClassifier

    return _scikit(RandomForestClassifier(60, max_depth=10, random_state=0), zipmap=False)


def scikit_forest_zipmap() -> Exported:
    """Sixty trees, probabilities as a list of dictionaries."""
    from sklearn.ensemble import RandomForestClassifier

    return _scikit(RandomForestClassifier(60, max_depth=10, random_state=0))


def _standardised_regression() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))


def scikit_pipeline() -> Exported:
    """A scaler and a logistic regression, ZipMap."""
    return _scikit(_standardised_regression())


def scikit_pipeline_columns() -> Exported:
    """The same with one output a class."""
    return _scikit(_standardised_regression(), zipmap="columns")


def lightgbm_trees() -> Exported:
    """Boosted trees by onnxmltools, ZipMap."""
    import onnxmltools
    from lightgbm import LGBMClassifier
    from onnxmltools.convert.common.data_types import FloatTensorType

    data = gray()
    model = LGBMClassifier(n_estimators=25, num_leaves=12, random_state=0, n_jobs=1, verbose=-1)
    model.fit(_levels(data.images), data.labels)
    proto = onnxmltools.convert_lightgbm(model, initial_types=[("row", FloatTensorType([None, PIXELS]))], zipmap=True)
    return Exported(
        file=proto.SerializeToString(),
        documented=convention("flat", "GRAY", LEVELS / 255),
        output="probabilities",
        batch=None,
        predict=lambda images: np.asarray(model.predict_proba(_levels(images))),
        taps=1,
    )


def xgboost_trees() -> Exported:
    """Boosted trees by onnxmltools, probabilities as a tensor."""
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType
    from xgboost import XGBClassifier

    data = gray()
    model = XGBClassifier(n_estimators=25, max_depth=4, n_jobs=1, base_score=0.5)
    model.fit(_levels(data.images), data.labels)
    proto = onnxmltools.convert_xgboost(model, initial_types=[("row", FloatTensorType([None, PIXELS]))])
    return Exported(
        file=proto.SerializeToString(),
        documented=convention("flat", "GRAY", LEVELS / 255),
        output="probabilities",
        batch=None,
        predict=lambda images: np.asarray(model.predict_proba(_levels(images))),
        taps=1,
    )

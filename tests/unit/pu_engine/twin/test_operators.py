"""Every line of the twin's table against onnxruntime, in the forms that operator sets gave it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pu_engine.runtime import forward
from pu_engine.twin.operators import OPERATORS, key
from pu_engine.twin.torch_twin import build
from tests.unit.pu_engine.twin_cases import CASES, Case

EACH = [pytest.param(case, opset, id=f"{case.name} {opset}") for case in CASES for opset in case.opsets]


@pytest.mark.parametrize(("case", "opset"), EACH)
def test_operator_gives_what_onnxruntime_gives(case: Case, opset: int) -> None:
    model, rows = case.model(opset), case.rows()
    (theirs,) = forward.stranger_session(model, 1).run(None, {"input": rows})
    with torch.no_grad():
        ours = build(model)(torch.from_numpy(rows)).numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_line_of_the_table_is_tested() -> None:
    tested = {key(n.domain, n.op_type, opset) for case in CASES for opset in case.opsets for n in case.nodes}
    assert set(OPERATORS) <= tested

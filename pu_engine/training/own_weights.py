"""A student's first weights from a safetensors file: an earlier job's student, or a network that a user trained."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from pu_engine.errors import EngineError

NAMED = 3


def load_own(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Load weights by name; the classifier stays as it is where the file's has another number of classes.

    Returns:
        Names of the weights that stay.

    Raises:
        EngineError: STUDENT_UNSUPPORTED where the file is not safetensors, or other weights are missing or of another
            shape.
    """
    try:
        given = load_tensors(path.read_bytes())
    except SafetensorError as error:
        raise _unfit(f"the file is not safetensors ({error})") from error
    own = module.state_dict()
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    head = tuple(f"{linear[-1]}.{leaf}" for leaf in ("weight", "bias")) if linear else ()
    missing = sorted(own.keys() - given.keys())
    extra = sorted(given.keys() - own.keys())
    misfits = sorted(n for n in own if n in given and given[n].shape != own[n].shape and n not in head)
    for problem, names in (("lacks", missing), ("has no place for", extra), ("has another shape of", misfits)):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise _unfit(f"it {problem} {', '.join(names[:NAMED])}{more}")
    stay = tuple(name for name in head if name in own and given[name].shape != own[name].shape)
    module.load_state_dict({name: own[name] if name in stay else value for name, value in given.items()})
    return stay


def _unfit(reason: str) -> EngineError:
    return EngineError(
        "STUDENT_UNSUPPORTED",
        f"The given weights do not fit the student: {reason}.",
        "Name the student that the weights are of, at the size and with the channels that it was built for.",
    )

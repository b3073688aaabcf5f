"""A student's features: what its classifier reads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pu_engine.errors import EngineError


class FeatureTap:
    """Keeps what the last linear layer of a network was given in its last forward.

    Raises:
        EngineError: STUDENT_UNSUPPORTED where the network has no linear layer.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
        if not layers:
            raise EngineError(
                "STUDENT_UNSUPPORTED",
                "The student has no linear classifier, so it has no features to compare with the teacher's.",
                "Leave out the part hints of the loss, or choose another student.",
            )
        self.width = layers[-1].in_features
        self._held: Tensor | None = None
        self._hook = layers[-1].register_forward_pre_hook(self._keep)

    def taken(self) -> Tensor:
        """The features of the last forward, [N, W]; an earlier one's are never given twice."""
        if self._held is None:
            raise ValueError("the network has not run since its features were taken")
        features, self._held = self._held, None
        return features

    def remove(self) -> None:
        """Leave the network as it was."""
        self._hook.remove()

    def _keep(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._held = inputs[0].flatten(1)

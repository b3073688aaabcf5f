"""The fixtures of a running server."""

from tests.service.conftest import folder  # noqa: F401 - a fixture

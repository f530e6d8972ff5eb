"""Tables, benchmarks and docs need what the extras `cli`, `data`, `codec` and `report` bring."""

from __future__ import annotations

import pytest

from tests.missing import EXTRAS, lacks

NEEDED = ("tyro", "rich", "sklearn", "constriction", "matplotlib")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Skip before anything is set up: commands end with a code, which says nothing of an extra."""
    for module in NEEDED:
        if lacks(module):
            pytest.skip(f"tests of the evidence need {module} (extra '{EXTRAS[module]}'), which is not installed")

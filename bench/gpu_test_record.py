"""A pytest plugin: one JSON line for each test, written as it ends, so that a crash loses one test and no more.

Tests that were on record when the session began are not run again: not those that have come since, for a process that
takes the place of a crashed one must find the tests that the others have. Where an error has made the device unusable
the session stops; the caller starts another for the rest. GPU_TEST_RECORD names the file, GPU_TEST_DONE the older
record.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

RECORD = Path(os.environ["GPU_TEST_RECORD"])
DONE = Path(os.environ["GPU_TEST_DONE"])


def _note(**line: object) -> None:
    with RECORD.open("a") as record:
        record.write(json.dumps(line) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    done = {json.loads(line)["test"] for line in DONE.read_text().splitlines()}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]


def pytest_runtest_logstart(nodeid: str) -> None:
    _note(test=nodeid, outcome="started")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        message = report.longreprtext[-2000:] if report.outcome == "failed" else None
        _note(test=report.nodeid, outcome=report.outcome, seconds=round(report.duration, 3), message=message)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _note(test=report.nodeid, outcome="failed", seconds=0.0, message=report.longreprtext[-2000:])


def pytest_runtest_teardown(item: pytest.Item) -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            item.session.shouldstop = "the device is lost"
            raise

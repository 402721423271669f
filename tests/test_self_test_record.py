"""The record of what checks found: written whole, read with care, told apart by device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import maskfuse
import pytest
import torch
from maskfuse._self_test import record
from pretended import chosen, stored
from pretended import pretended as pretended
from test_self_test_checks import one_thread as one_thread


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b'{"format": 1}',
        b'{"format": 1, "found": [1]}',
        b'{"format": 1, "found": {"KEY": 3}}',
        b'{"format": 1, "found": {"KEY": {"masked_linear": 3}}}',
        b'{"format": 2, "found": {"KEY": {"masked_linear": null}}}',
    ],
)
def test_a_corrupt_record_is_ignored_and_replaced(pretended, content):
    record.path().parent.mkdir()
    record.path().write_bytes(content.replace(b"KEY", pretended.who.key.encode()))
    assert chosen() == "cuda" and pretended.runs == ["masked_linear"]
    assert stored(pretended) == {"masked_linear": None}


def test_a_well_formed_record_is_read(pretended):
    """That the corrupt ones above are ignored for what is wrong with them."""
    record.path().parent.mkdir()
    found = {pretended.who.key: {"masked_linear": None}}
    record.path().write_text(json.dumps({"format": 1, "found": found}))
    assert chosen() == "cuda" and not pretended.runs


def test_a_corrupt_package_record_is_ignored(pretended):
    for content in (b"{", b"{}", b"[1]", b'[{"version": "1.2"}]', b"\xff"):
        record._PACKAGE_RECORD.write_bytes(content)
        assert record.passed_in_package(pretended.who) == set()


def unwritable(tmp_path):
    """Where no folder can be made, for root too: below a file."""
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file")


def test_an_unwritable_directory_is_lived_with(pretended, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", unwritable(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [chosen(), chosen()] == ["cuda", "cuda"]
    assert len(pretended.runs) == 1  # one run each process
    pretended.restarted()
    chosen()
    assert len(pretended.runs) == 2


def test_a_failed_write_leaves_the_old_record_and_no_litter(pretended, monkeypatch):
    chosen()
    before = record.path().read_text()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert not record.remember(pretended.who, {"other": None})
    assert record.path().read_text() == before and os.listdir(record.path().parent) == [record.path().name]


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert record.path() == tmp_path / "cache/maskfuse/self_test.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert record.path() == tmp_path / ".cache/maskfuse/self_test.json"


def test_the_oldest_identities_make_way(pretended):
    def who(number):
        return replace(pretended.who, library=f"library {number}")

    for number in range(record._MOST_KEYS):
        record.remember(who(number), {"mask": None})
    record.remember(who(0), {"other": None})  # the newest again
    record.remember(who(-1), {"mask": None})
    assert record.found(who(0)) == {"mask": None, "other": None}
    assert record.found(who(1)) == {} and record.found(who(2)) == {"mask": None}


def test_concurrent_writers(tmp_path):
    """Readers always find a whole record, and of what is written at the end nothing is missing."""
    code = """if 1:
        import sys
        from maskfuse._self_test import record
        who = record.Identity("1", "library", "device", sys.argv[1])
        for number in range(60):
            assert record.remember(who, {f"check {number}": None})
            record.path().read_text().index('"format"')
            import json; json.loads(record.path().read_text())
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    for writer in writers:
        assert writer.wait(300) == 0, writer.stderr.read()
    file = tmp_path / "maskfuse/self_test.json"
    assert os.listdir(file.parent) == [file.name]
    found = json.loads(file.read_text())["found"]
    assert any("check 59" in outcomes for outcomes in found.values())


def test_identity_of_a_device(monkeypatch, tmp_path):
    library = tmp_path / "_C_cuda.abi3.so"
    library.write_bytes(b"12345")
    monkeypatch.setattr(record._library, "cuda_path", library)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(record, "_driver", lambda: "580.1")
    first = record.identity(3)
    assert first.device == "GPU 3" and first.version == maskfuse.build_info()["version"] and "5 bytes" in first.library
    assert record.identity(3).key == first.key
    library.write_bytes(b"123456")
    assert record.identity(3).key != first.key
    same_size = record.identity(3)
    os.utime(library, ns=(1, 1))
    assert record.identity(3).key != same_size.key  # built again

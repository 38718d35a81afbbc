"""Places of the protocol ssh: what lies beside them, what lies in a folder, and how they are shown."""

from __future__ import annotations

from typing import Any

import pytest
from diskmill.contract.place import Place
from diskmill.errors import UsageError
from diskmill_ssh import driver, hostkey
from diskmill_ssh.channel import arguments
from diskmill_ssh.place import SshPlace


def place(name: str = "", **options: Any) -> SshPlace:
    found: Place = driver.place({"filename": name, **options} if name else options)
    assert isinstance(found, SshPlace)
    return found


@pytest.mark.parametrize(
    ("name", "shown", "path"),
    [
        ("ssh://host/a/b", "ssh://host/a/b", "/a/b"),
        ("sftp://me@host:2222/a", "ssh://me@host:2222/a", "/a"),
        ("ssh://host/a%20b%25%3Fc", "ssh://host/a%20b%25%3Fc", "/a b%?c"),
        ("ssh://host/%FF", "ssh://host/%FF", "/\udcff"),
        ("ssh://[::1]:22/a", "ssh://[::1]:22/a", "/a"),
        ("ssh://me%40corp@host/a?host_key_check=no", "ssh://me%40corp@host/a", "/a"),
    ],
)
def test_names_are_shown_as_they_are_typed(name: str, shown: str, path: str) -> None:
    assert place(name).path == path
    assert place(name).display() == shown
    assert place(place(name).display()).path == path


@pytest.mark.parametrize(
    ("reference", "inside"),
    [
        ("base", True),
        ("sub/base", True),
        ("./../a/base", True),
        ("../base", False),
        ("../ab/base", False),
        ("sub/../../base", False),
        ("/etc/passwd", False),
    ],
)
def test_what_lies_beside_is_judged_without_dots(reference: str, inside: bool) -> None:
    image = place("ssh://host/a/disk")
    folder = image.folder()
    assert folder is not None
    found = image.beside(reference).resolved()
    assert ".." not in found.path
    assert not found.follow
    assert found.within(folder) is inside


@pytest.mark.parametrize(
    ("folder", "name", "inside"),
    [
        ("ssh://host/a", "ssh://host/a/b", True),
        ("ssh://host/a", "ssh://HOST/a/b", True),
        ("ssh://host/a", "ssh://other/a/b", False),
        ("ssh://host/a", "ssh://me@host/a/b", False),
        ("ssh://host/a", "ssh://host:23/a/b", False),
        ("ssh://host/a", "ssh://host/a/b?host_key_check=no", False),
        ("ssh://host/a?host_key_check=no", "ssh://host/a/b?host_key_check=no", True),
        ("ssh://host/a?host_key_check=no", "ssh://host/a/b", True),
    ],
)
def test_a_folder_is_one_of_its_machine_and_user(folder: str, name: str, inside: bool) -> None:
    assert place(name).resolved().within(place(folder).resolved()) is inside


def test_nothing_but_options_that_are_known_reaches_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISKMILL_SSH", "my-ssh -F 'a file'")
    words = arguments(place("ssh://me@host:2222/x?host_key_check=yes").server, ask=False)
    assert words[:3] == ["my-ssh", "-F", "a file"]
    assert words[-8:] == ["-p", "2222", "-l", "me", "-s", "--", "host", "sftp"]
    assert "BatchMode=yes" in words
    assert "StrictHostKeyChecking=yes" in words
    assert "/x" not in words


@pytest.mark.parametrize(
    "options",
    [
        {"host": "-oProxyCommand=x", "path": "/x"},
        {"host": "h", "user": "-lroot", "path": "/x"},
        {"host": "h", "user": "a b", "path": "/x"},
        {"host": "h\n", "path": "/x"},
        {"host": "h", "port": "22;x", "path": "/x"},
        {"host": "h", "path": "x"},
        {"name": "ssh://h/x", "host": "h"},
        {"name": "ssh://h/x?host_key_check=no", "host_key_check": "yes"},
        {"name": "ssh://h/x?host_key_check=no", "host-key-check.mode": "known_hosts"},
        {"path": "/x"},
        {"host": "h", "path": "/x", "host-key-check.mode": "hash"},
        {"host": "h", "path": "/x", "host-key-check.mode": "none", "host-key-check.hash": "00"},
        {
            "host": "h",
            "path": "/x",
            "host-key-check.mode": "hash",
            "host-key-check.type": "md5",
            "host-key-check.hash": "0 %H",
        },
    ],
)
def test_odd_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        place(**options)


def test_only_the_key_with_the_hash_is_known() -> None:
    digits = "900150983cd24fb0d6963f7d28e17f72"  # of "abc", RFC 1321
    assert hostkey.known("md5", digits, "[h]:22", "ssh-x", "YWJj") == "[h]:22 ssh-x YWJj\n"
    assert hostkey.known("md5", digits, "[h]:22", "ssh-x", "YWJk") == ""
    assert hostkey.known("md5", digits, "h", "NONE", "NONE") == ""

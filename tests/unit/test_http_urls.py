"""URLs as places: one form for what is the same, and nothing that leads out of a folder unseen."""

from __future__ import annotations

import pytest
from diskmill.errors import StorageError, UsageError
from diskmill_http import http_driver
from diskmill_http.place import UrlPlace


def place(text: str) -> UrlPlace:
    return UrlPlace.parse(http_driver, text, {})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://HOST/a", "http://host:80/a"),
        ("http://h/%7Ea%2db", "http://h/~a-b"),
        ("http://h/a/./b/../c", "http://h/a/c"),
        ("http://h/a/%2E%2e/c", "http://h/c"),
        ("http://h/../../c", "http://h/c"),
        ("http://h/a b%c3%a9", "http://h/a%20b\u00e9"),
        ("http://h", "http://h/"),
        ("http://u:p@h/a", "http://h/a#part"),
    ],
)
def test_the_same(one: str, other: str) -> None:
    assert place(one).identity() == place(other).identity()
    assert place(one).display() == place(other).display()


@pytest.mark.parametrize("other", ["http://h/A", "http://h:81/a", "http://h/a?", "http://h/a/", "http://i/a"])
def test_not_the_same(other: str) -> None:
    assert place("http://h/a").identity() != place(other).identity()


def test_beside_keeps_no_secrets() -> None:
    one = place("http://u:p@h:8080/x/disk.qcow2?token=s").beside("sub/b c?d#e.raw")
    assert one.url.address == "http://h:8080/x/sub/b%20c%3Fd%23e.raw"
    assert one.url.user is None
    assert place("http://h/x/y?q").beside("../../../z").url.address == "http://h/z"
    assert place("http://h/x/y").beside("//other/z").url.origin.host == "h"


def test_what_lies_within() -> None:
    folder = place("http://h/images/").resolved()
    for inside in ("http://h/images/a", "http://h:80/images/b/c", "http://h/images/%2e/x"):
        assert place(inside).resolved().within(folder)
    for outside in ("http://h/images/../a", "http://h/imagesx/a", "http://h:81/images/a", "http://i/images/a"):
        assert not place(outside).resolved().within(folder)
    for odd in ("..%2fa", "%2e%2e%2fa", "..%255ca", "..;/a", "a%00b", "%252e%252e/a"):
        with pytest.raises(StorageError, match="several ways"):
            place(f"http://h/images/{odd}").resolved()


def test_folders() -> None:
    folder = place("http://u:p@h/a/b/c?d").folder()
    assert folder is not None and folder.url.address == "http://h/a/b/"
    above = folder.folder()
    assert above is not None and above.url.address == "http://h/a/"
    assert place("http://h/").folder() is None


@pytest.mark.parametrize(
    "text", ["http://", "http:///x", "http://h:x/", "http://h\n/", "http://a..b/", "https://h/", "x"]
)
def test_no_url(text: str) -> None:
    with pytest.raises(UsageError):
        place(text)

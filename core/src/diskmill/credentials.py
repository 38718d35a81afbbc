"""Credentials in names: how text is shown without them.

A name may hold a password, or what counts as one: ``https://user:password@host/``, the signature of a presigned
URL, a cookie in a ``json:`` name, the key in an ``rbd:`` name. Names come from users and out of images, some are of no
protocol that is installed, and some are malformed: so this goes by the text alone, and would rather hide too much.
"""

from __future__ import annotations

import re

_MARK = "…"
_WEB = r"(?:https?|ftps?)"
"""Schemes, or what stands last in them, whose user, too, may be a token, and whose query is anybody's."""
_SCHEME = r"[a-z][a-z0-9.+-]{0,30}"
_LONG = "{0,1024}"
"""How far a pattern looks: a text that a stranger wrote takes time in proportion to its length, not to its square."""
_NAMES = r"(?:pass(?:word|wd|phrase)|(?<!-)secret|token|sig|signature|credentials?|cookie|auth(?:orization)?|key)"
"""Of options and parameters that hold credentials. (``key-secret`` and the like hold the id of a secret.)"""
_NAMED = rf"(?:[\w.-]*[._-])?{_NAMES}(?:\.\d+)?"
_HIDDEN = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), shown)
    for pattern, shown in (
        # Up to the last '@' of what stands before the path; and beyond, where a password has a slash in it.
        (rf"\b({_WEB}:/+)[^\s\"/?#]{_LONG}@", rf"\1{_MARK}@"),
        (rf"\b({_SCHEME}:/+)([^\s\"/?#@:%\[]{_LONG})([:%])(?!\d*[/?#])[^\s\"?#]{_LONG}@", rf"\1\2\3{_MARK}@"),
        (rf"\b((?!ssh:|sftp:){_SCHEME}:/+)([^\s\"/?#@:%\[]{_LONG})([:%])[^\s\"/?#]{_LONG}@", rf"\1\2\3{_MARK}@"),
        (rf"\b({_WEB}:[^\s\"?#]{_LONG})([?#])[^\s\"']+", rf"\1\2{_MARK}"),
        (rf"\b({_WEB}:)(?!//)[^\s\"']{_LONG}@", rf"\1{_MARK}@"),
        (rf"([?&:;,]{_NAMED}=)[^&:;,\s\"']+", rf"\1{_MARK}"),
        # Members of objects, of which a name in quotes may hold one: then their quotes have backslashes.
        (
            rf"""((\\{{0,8}}["'])(?:{_NAMED}|[\w.]*header(?:\.\d+)?)\2\s*:\s*(\\{{0,8}}["'])).*?(\3|$)""",
            rf"\1{_MARK}\4",
        ),
        (r"""((\\{0,8}["'])[\w.]*header\2\s*:\s*\[).*?(\]|$)""", rf"\1{_MARK}\3"),
    )
)


def without_credentials(text: str) -> str:
    """*text*, a name or a message with names in it, with ``…`` in place of what may be a credential."""
    for pattern, shown in _HIDDEN:
        text = pattern.sub(shown, text)
    return text

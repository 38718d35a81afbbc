"""Credentials in names: how text is shown without them.

A name may hold a password, or what counts as one: ``https://user:password@host/``, the signature of a presigned
URL, a cookie in a ``json:`` name, the key in an ``rbd:`` name. Names come from users and out of images, some are of no
protocol that is installed, and some are malformed: so this goes by the text alone, and would rather hide too much.
"""

from __future__ import annotations

import re

_MARK = "…"
_WEB = r"(?:[a-z0-9.+-]*\+)?(?:https?|ftps?)"
"""Schemes whose user, too, may be a token, and whose query is anybody's."""
_NAMES = r"(?:pass(?:word|wd|phrase)|(?<!-)secret|token|sig|signature|credentials?|cookie|auth(?:orization)?|key)"
"""Of options and parameters that hold credentials. (``key-secret`` and the like hold the id of a secret.)"""
_NAMED = rf"(?:[\w.-]*[._-])?{_NAMES}(?:\.\d+)?"
_HIDDEN = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), shown)
    for pattern, shown in (
        # Up to the last '@' of what stands before the path; and beyond, where a password has a slash in it.
        (rf"\b({_WEB}:/+)[^\s\"/?#]*@", rf"\1{_MARK}@"),
        (r"\b([a-z][a-z0-9.+-]*:/+)([^\s\"/?#@:%\[]*)([:%])(?!\d*[/?#])[^\s\"?#]*@", rf"\1\2\3{_MARK}@"),
        (r"\b((?!ssh:|sftp:)[a-z][a-z0-9.+-]*:/+)([^\s\"/?#@:%\[]*)([:%])[^\s\"/?#]*@", rf"\1\2\3{_MARK}@"),
        (rf"\b({_WEB}:[^\s\"?#]*)([?#])[^\s\"']+", rf"\1\2{_MARK}"),
        (rf"\b({_WEB}:)(?!//)[^\s\"']*@", rf"\1{_MARK}@"),
        (rf"([?&:;,]{_NAMED}=)[^&:;,\s\"']+", rf"\1{_MARK}"),
        # Members of objects, of which a name in quotes may hold one: then their quotes have backslashes.
        (rf"""((\\*["'])(?:{_NAMED}|[\w.]*header(?:\.\d+)?)\2\s*:\s*(\\*["'])).*?(\3|$)""", rf"\1{_MARK}\4"),
        (r"""((\\*["'])[\w.]*header\2\s*:\s*\[).*?(\]|$)""", rf"\1{_MARK}\3"),
    )
)


def without_credentials(text: str) -> str:
    """*text*, a name or a message with names in it, with ``…`` in place of what may be a credential."""
    for pattern, shown in _HIDDEN:
        text = pattern.sub(shown, text)
    return text

"""Which files images stand on: what must not be written while they are read, and what two of them have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..contract.node import Image, Node
from ..errors import UsageError
from ..opening.graph import chain_of
from ..opening.places import new_place
from ..opening.registry import Registry


def refuse_self(images: Sequence[Image], output: str, registry: Registry) -> None:
    """An image cannot be converted onto itself, nor onto one that it stands on."""
    identity = new_place(output, registry).identity()
    if identity is not None and identity in identities(images):
        raise UsageError("the output is also an input", file=output)


def identities(images: Sequence[Image]) -> set[object]:
    """The identities of all files that *images* stand on."""
    return {one for image in images for one in _identities(image) if one is not None}


def _identities(top: Node) -> Iterator[object]:
    nodes = [top]
    while nodes:
        node = nodes.pop()
        below = list(node.children())
        if node.identity() is not None or not below:
            yield node.identity()
        nodes += below


def shared_base(source: Image, base: Image, snapshot: str | None) -> Image | None:
    """The image of *source*'s chain that reads as *base* does; None: there is none, so that nothing can be left to it.

    It is *base* itself, wherever in the chain that is. Elsewhere the user vouches for the source's backing image.
    """
    for one in chain_of(source):
        if _same(one, base):
            # A snapshot is not what the image reads as when it is a backing image.
            return None if one is source and snapshot is not None else one
    return source.backing


def _same(one: Image, other: Image) -> bool:
    """Whether both surely are the same graph of images, on the same storage."""
    if [_view(image) for image in chain_of(one)] != [_view(image) for image in chain_of(other)]:
        return False
    identities = list(_identities(one))
    return None not in identities and identities == list(_identities(other))


def _view(image: Image) -> tuple[object, ...]:
    return image.driver.name, image.size, image.window

"""Names of RBD images: what is shown of a place leads back to it, whatever its pool, image and snapshot are called."""

from __future__ import annotations

import pytest
from diskmill.opening.names import parse_name
from diskmill.opening.places import place_of
from diskmill.opening.registry import Registry
from hypothesis import example, given
from hypothesis import strategies as st

REGISTRY = Registry()
WORDS = st.text(alphabet="/\\:@=an", min_size=1, max_size=6)


@example(pool="p", namespace="", image="/x", snapshot=None, conf=None)
@example(pool="/p", namespace="/n", image="x", snapshot="/s", conf="/etc/ceph/a:b.conf")
@given(pool=WORDS, namespace=st.just("") | WORDS, image=WORDS, snapshot=st.none() | WORDS, conf=st.none() | WORDS)
def test_a_shown_name_is_of_the_same_image(
    pool: str, namespace: str, image: str, snapshot: str | None, conf: str | None
) -> None:
    told = {"pool": pool, "namespace": namespace, "image": image, "snapshot": snapshot, "conf": conf}
    options = {key: value for key, value in told.items() if value}
    place = place_of({"driver": "rbd", **options}, REGISTRY)
    again = place_of(parse_name(place.display())["file"], REGISTRY)
    assert again.identity() == place.identity()
    assert again.display() == place.display()


@pytest.mark.parametrize("name", [r"rbd:p/\/x", "rbd:p/n/i@s:conf=/etc/ceph/ceph.conf:id=me"])
def test_a_name_is_shown_as_it_was_given(name: str) -> None:
    assert place_of(parse_name(name)["file"], REGISTRY).display() == name

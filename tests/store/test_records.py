import pytest

from abc_rag.errors import InputError
from abc_rag.store.records import image_id, text_id


def test_ids_of_contents() -> None:
    assert text_id("a") == text_id("a") == "text-" + "ca978112ca1bbdcafac231b39a23dc4d"
    assert text_id("a") != text_id("b")
    assert text_id("\ud800").startswith("text-")
    assert image_id("AB" * 32) == "image-" + "ab" * 16
    for bad in ("ab", "zz" * 32, None):
        with pytest.raises(InputError, match="64"):
            image_id(bad)

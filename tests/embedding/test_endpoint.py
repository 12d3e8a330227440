"""Where a server of OpenAI's protocol is, and the key for it."""

from __future__ import annotations

import pytest

from abc_rag.embedding.endpoint import checked_url, is_loopback, key_in
from abc_rag.errors import InputError


def test_which_addresses_are_of_this_machine() -> None:
    assert all(is_loopback(f"http://{host}/v1") for host in ("127.0.0.1:8000", "localhost", "[::1]:1", "127.8.8.8"))
    assert not any(is_loopback(f"http://{host}/v1") for host in ("10.0.0.1", "localhost.example", "api.openai.com"))


def test_a_url_ends_before_the_path_of_requests() -> None:
    for given in ("http://gpu:8000/v1", "http://gpu:8000/v1/", "http://gpu:8000/v1/chat/completions"):
        assert checked_url(given) == "http://gpu:8000/v1"


@pytest.mark.parametrize(
    "url", ["gpu:8000", "ftp://gpu", "http://", "http://gpu:x", None, "http://a:secret@gpu", "http://gpu?key=secret"]
)
def test_what_is_no_base_url(url: str) -> None:
    with pytest.raises(InputError, match="base_url must") as error:
        checked_url(url)
    assert "secret" not in str(error.value)


def test_a_key_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_in(None, "http://gpu") is None
    monkeypatch.setenv("SOME_KEY", " abc ")
    assert key_in("SOME_KEY", "http://gpu") == "abc"
    for wrong, said in (("", "is not set"), ("sécret", "no key has"), ("a\nb", "no key has")):
        monkeypatch.setenv("SOME_KEY", wrong)
        with pytest.raises(InputError, match=rf"\$SOME_KEY.*{said}"):
            key_in("SOME_KEY", "http://gpu")

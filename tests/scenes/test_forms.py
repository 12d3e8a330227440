"""Lists of wordings."""

from __future__ import annotations

from abc_rag.scenes.forms import read_forms


def test_forms_are_read_by_name_and_every_place_is_known() -> None:
    forms = read_forms("asking.txt")
    assert {"where np", "where q", "size np", "back q", "frame np", "frame q", "other", "both"} <= forms.keys()
    assert all(listed for listed in forms.values())
    for name in ("frame np", "frame q"):
        assert all(form.count("{}") == 1 for form in forms[name])
    assert read_forms("searching.txt").keys() >= {"side", "size", "background", "category", "shown"}

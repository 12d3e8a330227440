"""Duplicates are found, and other pictures are not taken for them."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
from authoring_helpers import painted, resaved

from abc_rag.evaluation.authoring.dedupe import LookAlikes, print_of


def test_a_picture_saved_otherwise_is_the_same_and_others_are_not(tmp_path: Path) -> None:
    pictures = [PIL.Image.open(painted(tmp_path / f"{seed}.png", seed)) for seed in range(30)]
    alike = LookAlikes(10)
    for number, picture in enumerate(pictures):
        assert alike.find(print_of(picture)) is None
        alike.add(str(number), print_of(picture))
    for number, picture in enumerate(pictures):
        for other in (resaved(picture, 40), resaved(picture, 70, 0.5), resaved(picture, 90, 2.0)):
            assert alike.find(print_of(other)) == str(number)


def test_plain_pictures_differ_by_their_colour() -> None:
    alike = LookAlikes(10)
    alike.add("red", print_of(PIL.Image.new("RGB", (50, 50), "red")))
    assert alike.find(print_of(PIL.Image.new("RGB", (50, 50), "blue"))) is None
    assert alike.find(print_of(PIL.Image.new("RGB", (70, 90), "red"))) == "red"


def test_more_pictures_than_there_was_room_for() -> None:
    alike = LookAlikes(10)
    prints = [print_of(PIL.Image.new("RGB", (20, 20), (n, 255 - n, n // 2))) for n in range(0, 256, 1)]
    for number, one in enumerate(prints):
        alike.add(str(number), one)
    assert alike.find(prints[200]) is not None
    assert LookAlikes(0).find(prints[0]) is None

"""The benchmark of rewriting, second looks and facets: what it asks, and that its figures are what it says."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from abc_rag.answering.fake import FakeGenerator
from abc_rag.cli import main as cli
from abc_rag.embedding.embedder import Embedder
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.evaluation.twins import AskedScene, evaluate_twins, twin_scenes
from abc_rag.images import open_image
from abc_rag.scenes.drawing import render
from abc_rag.scenes.world import CATEGORY_OF, Scene, is_held_out
from abc_rag.types import Message


@pytest.fixture(scope="module")
def asked() -> list[AskedScene]:
    return twin_scenes()


def pairs(asked: list[AskedScene]) -> list[tuple[AskedScene, AskedScene]]:
    return list(zip(asked[::2], asked[1::2], strict=True))


def test_there_are_a_thousand_held_out_scenes(asked: list[AskedScene]) -> None:
    assert len(asked) == 1000
    assert all(is_held_out(*(o.kind for o in one.scene.objects)) for one in asked)
    assert {one.aspect for one in asked} == {"background", "category", "side", "size"}
    assert min(sum(one.aspect == a for one in asked) for a in ("background", "category", "side", "size")) > 150
    assert twin_scenes(10) == asked[:10]


def what(scene: Scene) -> dict[str, object]:
    """Each respect in which scenes can differ; of the objects, what does not change when they swap places."""
    return {
        "kinds": sorted(o.kind for o in scene.objects),
        "places": [(o.side, o.shift) for o in scene.objects],
        "order": [o.kind for o in scene.objects],
        "sizes": [o.size for o in scene.objects],
        "background": scene.background,
        "tint": scene.tint,
    }


def test_twins_differ_in_the_asked_aspect_only(asked: list[AskedScene]) -> None:
    allowed = {"side": {"order"}, "size": {"sizes"}, "category": {"kinds", "order"}, "background": {"background"}}
    for one, twin in pairs(asked):
        assert one.aspect == twin.aspect
        first, second = what(one.scene), what(twin.scene)
        assert {name for name in first if first[name] != second[name]} == allowed[one.aspect]
        if one.aspect == "category":
            assert [CATEGORY_OF[o.kind] for o in one.scene.objects] == [CATEGORY_OF[o.kind] for o in twin.scene.objects]


def test_a_question_is_true_of_its_scene_and_not_of_the_twin(asked: list[AskedScene]) -> None:
    for one, twin in pairs(asked):
        assert one.fits(one.scene)
        assert twin.fits(twin.scene)
        assert not one.fits(twin.scene)
        assert not twin.fits(one.scene)


def test_what_is_true_is_said(asked: list[AskedScene]) -> None:
    for one in asked:
        if one.aspect == "background":
            assert one.scene.background in one.question
        else:
            assert any(o.kind in one.question for o in one.scene.objects)


@pytest.mark.parametrize("scenes", [0, 1, 3, 1002])
def test_counts_that_make_no_pairs(scenes: int, mini: Embedder) -> None:
    with pytest.raises(InputError, match="even number between 2 and 1000"):
        evaluate_twins(mini, scenes=scenes)


def test_the_report_on_a_few_scenes(mini: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", "twins", "--scenes", "40", "--candidates", "20", "--json"])
    assert not end.value.code
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == str(mini.fingerprint)
    assert report["tables"][0]["title"] == "twins: 40 pictures, 40 questions"
    told = report["details"]
    paths = {path["name"]: path for path in told["paths"]}
    assert list(paths) == [
        "as asked",
        "rules",
        "rules and second look",
        "rules, facets",
        "rules, facets and second look",
    ]
    assert [path["name"] for path in told["unseen"]] == list(paths)
    aspects = Counter(one.aspect for one in twin_scenes(40))
    for path in told["paths"] + told["unseen"]:
        assert path["recall_at_1"] <= path["recall_at_10"] <= 1
        right = sum(share * aspects[aspect] for aspect, share in path["by_aspect"].items())
        assert right == pytest.approx(40 * path["recall_at_1"])
    assert paths["as asked"]["second_looks"] == paths["rules"]["second_looks"] == 0
    assert paths["rules and second look"]["second_looks"] == 20
    # A facet of the very instruction takes the place of a second look.
    assert paths["rules, facets and second look"]["second_looks"] == 0
    assert paths["rules, facets"]["vectors"] == 1 + len(told["facets"])
    # What the whole is for; all 1,000 scenes show the same, and more sharply.
    assert paths["rules and second look"]["recall_at_1"] > paths["rules"]["recall_at_1"] + 0.1
    assert paths["rules and second look"]["before_twin"] > paths["rules"]["before_twin"] + 0.1


class Oracle(FakeGenerator):
    """Knows of which pictures a question is true."""

    def __init__(self, asked: list[AskedScene]) -> None:
        super().__init__()
        self._asked = asked
        self._pixels = [render(one.scene, 168).tobytes() for one in asked]

    def _score(self, messages: tuple[Message, ...], answers: tuple[str, ...]) -> list[float]:
        (source,) = messages[-1].pictures
        scene = self._asked[self._pixels.index(open_image(source).image.tobytes())].scene
        said = str(messages[-1].parts[0])
        right = any(one.question in said and one.fits(scene) for one in self._asked)
        return [math.log(0.9 if answer.lower().startswith("yes") == right else 0.1) for answer in answers]


def test_a_judge_that_knows_ranks_the_right_picture_first() -> None:
    asked = twin_scenes(8)
    report = evaluate_twins(FakeEmbedder(dim=16), generator=Oracle(asked), scenes=8)
    paths = {path["name"]: path for path in report.details["paths"]}
    assert len(paths) == 7
    for name in ("rules and judge", "generator and judge"):
        assert paths[name]["recall_at_1"] == paths[name]["before_twin"] == 1.0

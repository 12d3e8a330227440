"""Markdown as HTML: known pieces, and nothing that runs or is fetched."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from abc_rag.search.markdown import render_markdown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n\nthree", "<p>one two</p><p>three</p>"),
        ("## A *pig* ##", "<p><strong>A <em>pig</em></strong></p>"),
        ("- a\n- **b**\n\n1. c", "<ul><li>a</li><li><strong>b</strong></li></ul><ul><li>c</li></ul>"),
        ("> said\n> so", "<blockquote>said so</blockquote>"),
        ("```python\na < b\n\n# c\n```\nafter", "<pre>a &lt; b\n\n# c</pre><p>after</p>"),
        ("```\nno end", "<pre>no end</pre>"),
        ("`a *b* <c>` *d*", "<p><code>a *b* &lt;c&gt;</code> <em>d</em></p>"),
        ("2 * 3 * 4 and snake_case_name", "<p>2 * 3 * 4 and snake_case_name</p>"),
        ("text\n- item", "<p>text</p><ul><li>item</li></ul>"),
        ("![a pig](https://example.org/pig.png)!", "<p>a pig!</p>"),
        (
            "[why](https://example.org/a_b_c?x=1&y=2)",
            '<p><a rel="noreferrer noopener" href="https://example.org/a_b_c?x=1&amp;y=2">why</a></p>',
        ),
        ("[why](javascript:alert(1))", "<p>[why](javascript:alert(1))</p>"),
        ("", ""),
    ],
)
def test_known_pieces(text: str, expected: str) -> None:
    assert render_markdown(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "**<img src=x onerror=y>**",
        '[a](https://e.org/"onclick="x)',
        "[<script>](https://e.org/<script>)",
        "# <style>@import 'x'</style>\n- <b onclick=z>\n> <iframe>\n```\n<script>\n```\n`<object>`",
        "![<img src=x>](https://e.org/x)",
    ],
)
def test_nothing_runs_and_nothing_is_fetched(text: str) -> None:
    tags: list[tuple[str, list[tuple[str, str | None]]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, attrs))

    Tags().feed(render_markdown(text))
    assert {tag for tag, _ in tags} <= {"p", "strong", "em", "ul", "li", "blockquote", "pre", "code", "a"}
    for tag, attributes in tags:
        assert tag == "a" or attributes == []
        assert {name for name, _ in attributes} <= {"rel", "href"}


def test_a_long_passage_is_shown_as_it_is_written() -> None:
    text = "**a " * 5000
    assert render_markdown(text) == f'<p class="text">{text}</p>'

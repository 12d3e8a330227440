"""Which files of a folder are indexed: told by their content, without what machines keep, without a way out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pillow_heif
import pytest
from ingest_helpers import Index, counts, id_of, passage, picture, sources

from abc_rag import ChromaStore, Record
from abc_rag.embedding.fake import FakeEmbedder
from abc_rag.errors import InputError
from abc_rag.images.open import content_hash
from abc_rag.ingest import paths as ingest
from abc_rag.ingest.files import IMAGE_SUFFIXES, files_matching
from abc_rag.ingest.paths import index_paths
from abc_rag.ingest.pictures import index_images
from abc_rag.store import LanceStore
from abc_rag.store.records import text_id

# --- What is found ----------------------------------------------------------------------------------------


def test_a_tree_of_pictures_and_passages(folder: Path, store: ChromaStore, index: Index) -> None:
    suffixes = sorted(IMAGE_SUFFIXES - {".avif", ".heic", ".heif"})
    colours = dict(zip(suffixes, "red green blue cyan pink gold gray navy lime plum".split(), strict=True))
    pictures = [picture(folder / "sub" / "deep" / f"p{suffix}", colour) for suffix, colour in colours.items()]
    pictures.append(picture(folder / "SHOUT.PNG", "white"))
    passage(folder / "a.txt", "\ufefffirst line\n  second line  \n\n\n \t\nnext\r\n\r\nlast")
    passage(folder / "b.md", "Title\n\nbody")
    passage(folder / "empty.txt", " \n\n")
    picture(folder / ".hidden" / "x.png", "teal")
    picture(folder / ".x.png", "olive")
    passage(folder / "notes.rst", "not of a kind that is read")
    passage(folder / "LICENSE", "nor this")
    report, embedded = index()
    assert (counts(report), embedded) == ((len(pictures) + 5, 0, 0, 0), len(pictures) + 5)
    records = {record.id: record for record in store.records()}
    kinds = {".jpg": "jpeg", ".tif": "tiff", ".jfif": "jpeg", ".jpe": "jpeg"}
    expected = {
        id_of(p): Record(
            id_of(p),
            "image",
            source=str(p),
            sha256=content_hash(p),
            mime_type=f"image/{kinds.get(p.suffix, p.suffix[1:].lower())}",
        )
        for p in pictures
    }
    for text in ("first line\nsecond line", "next", "last"):
        expected[text_id(text)] = Record(text_id(text), "text", text=text, source=str(folder / "a.txt"))
    for text in ("Title", "body"):
        expected[text_id(text)] = Record(text_id(text), "text", text=text, source=str(folder / "b.md"))
    assert records == expected


def test_each_vector_is_that_of_its_own_content(folder: Path, store: ChromaStore, index: Index) -> None:
    red, blue = picture(folder / "b.png", "red"), picture(folder / "a.png", "blue")
    passage(folder / "c.txt", "one\n\ntwo")
    index()
    fake = FakeEmbedder()
    wanted = dict(zip(map(id_of, (red, blue)), fake.embed_images([red, blue]), strict=True))
    wanted |= dict(zip(map(text_id, ("one", "two")), fake.embed_texts(["one", "two"]), strict=True))
    stored = store.vectors(wanted)
    assert stored.keys() == wanted.keys()
    for name, vector in wanted.items():
        np.testing.assert_allclose(stored[name], vector, atol=1e-6)


def test_a_hidden_folder_can_be_named(folder: Path, index: Index) -> None:
    hidden = picture(folder / ".hidden" / "x.png", "red").parent
    assert counts(index(hidden)[0]) == (1, 0, 0, 0)


def test_a_file_named_twice_and_by_its_folder_is_one(
    folder: Path, store: ChromaStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = picture(folder / "sub" / "x.png", "red")
    (folder / "door").symlink_to(folder / "sub")
    monkeypatch.chdir(folder)
    report, embedded = index(one, Path("sub/x.png"), Path("sub"), Path("door"), folder / "door" / "x.png")
    assert (counts(report), embedded) == ((1, 0, 0, 0), 1)
    assert sources(store) == {id_of(one): str(one)}


def test_a_link_is_of_the_kind_that_its_own_name_says(folder: Path, store: ChromaStore, index: Index) -> None:
    # As in the caches of the hub and of git-annex: the target's name is a hash.
    target = picture(folder / ".blobs" / "x.png", "red").rename(folder / ".blobs" / "0123abcd")
    link = folder / "photo.png"
    link.symlink_to(target)
    report, _ = index()
    assert counts(report) == (1, 0, 0, 0), report.failed
    assert list(sources(store).values()) == [str(link)]


@pytest.mark.parametrize("kind", ["picture", "text", "folder", "above"])
def test_links_that_lead_elsewhere_are_followed_only_where_that_is_asked_for(
    kind: str, tmp_path: Path, folder: Path, store: ChromaStore
) -> None:
    elsewhere = tmp_path / "elsewhere"
    photo, secret = picture(elsewhere / "photo.png", "red"), passage(elsewhere / "passwd.txt", "root:x:0:0")
    link, target = {
        "picture": (folder / "a.png", photo),
        "text": (folder / "a.txt", secret),
        "folder": (folder / "a", elsewhere),
        "above": (folder / "a", tmp_path),  # which holds the folder with the link
    }[kind]
    link.symlink_to(target)
    report = index_paths([folder], FakeEmbedder(), store)
    assert (counts(report), report.left_out) == ((0, 0, 0, 0), {"links that lead elsewhere": 1})
    report = index_paths([folder], FakeEmbedder(), store, follow_links=True)
    assert report.added == {"picture": 1, "text": 1, "folder": 2, "above": 2}[kind]
    # What is named itself is no link that leads elsewhere.
    assert index_paths([link], FakeEmbedder(), store).unchanged == report.added


def test_a_link_between_two_folders_that_were_given_is_no_way_out(folder: Path, index: Index) -> None:
    one = picture(folder / "one" / "x.png", "red")
    (folder / "two").mkdir()
    (folder / "two" / "y.png").symlink_to(one)
    (folder / "two" / "again").symlink_to(folder / "one")
    report, embedded = index(folder / "one", folder / "two")
    assert (counts(report), report.left_out, embedded) == ((1, 0, 0, 0), {}, 1)


def test_pictures_are_told_by_their_content(folder: Path, store: ChromaStore, index: Index) -> None:
    for colour, name in (("red", "a1b2c3"), ("green", "photo.jpg_large"), ("blue", "scan.dat")):
        picture(folder / f"{colour}.png", colour).rename(folder / name)
    picture(folder / "white.jpg", "white").rename(folder / "white.png")
    passage(folder / "BM.txt", "BMW builds cars")
    (folder / "song.m4a").write_bytes(b"\0\0\0\x18ftypM4A " + bytes(100))
    (folder / "paper.ps").write_bytes(b"%!PS-Adobe-3.0")
    (folder / "letter.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF")
    passage(folder / "program.py", "print()")
    (folder / "empty").touch()
    (folder / "noise").write_bytes(bytes(range(256)))
    os.mkfifo(folder / "pipe")
    report, _ = index()
    assert counts(report) == (5, 0, 0, 0)
    assert report.left_out == {
        "PostScript": 2,
        "film": 1,
        "text": 1,
        "empty file": 1,
        "file of unknown kind": 1,
        "devices, pipes and sockets": 1,
    }
    assert counts(index()[0]) == (0, 5, 0, 0)
    (folder / "a1b2c3").write_bytes(picture(folder / "new.png", "pink").read_bytes())
    (folder / "new.png").unlink()
    assert counts(index()[0]) == (1, 4, 1, 0)


def test_avif_and_heic(folder: Path, store: ChromaStore, index: Index) -> None:
    picture(folder / "b.avif", "red", (64, 64))
    pillow_heif.from_pillow(PIL.Image.new("RGB", (64, 64), "blue")).save(folder / "IMG_1.HEIC")
    report, _ = index()
    assert counts(report) == (2, 0, 0, 0), report.failed
    assert {record.mime_type for record in store.records()} == {"image/avif", "image/heic"}


def test_what_machines_leave_behind_is_left_out(folder: Path, index: Index) -> None:
    picture(folder / "1.jpg", "red")
    for name in ("@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/old.jpg", "$RECYCLE.BIN/x.jpg", "lost+found/y.jpg"):
        picture(folder / name, "blue")
    picture(folder / ".thumbnails" / "1.jpg", "green")
    for name in ("Thumbs.db", ".DS_Store", "sub/desktop.ini"):
        passage(folder / name, "of the system")
    report, _ = index()
    assert counts(report) == (1, 0, 0, 0)
    assert report.left_out == {"thumbnails and recycle bins": 6, "hidden": 2}
    assert counts(index(folder / "@eaDir")[0]) == (1, 0, 0, 0)  # where it is named


@pytest.mark.parametrize("kind", [ChromaStore, LanceStore])
def test_a_store_and_its_copies_are_no_pictures_of_the_folder(
    folder: Path, kind: type[ChromaStore] | type[LanceStore]
) -> None:
    picture(folder / "1.jpg", "red")
    embedder = FakeEmbedder()
    with kind(folder / "abc-rag-store", fingerprint=embedder.fingerprint) as store:
        index_images([PIL.Image.new("RGB", (9, 9), "blue")], embedder, store, ids=["product-17"], keep=True)
        report = index_paths([folder], embedder, store)
        assert (report.added, report.left_out) == (1, {"stores and their copies": 1})
        (kept,) = store.get(["product-17"])
        assert Path(kept.source).is_file()
        # The folder of the copies alone, as a server's user has it.
        report = index_paths([Path(kept.source).parents[1]], embedder, store)
        assert (report.added, report.left_out) == (0, {"stores and their copies": 1})
        store.delete(["product-17"])
        assert {Path(record.source).name for record in store.records()} == {"1.jpg"}


def test_patterns_leave_out(folder: Path, store: ChromaStore) -> None:
    names = ("a.png", "b.jpg", "raw/c.png", "raw/keep.png", "deep/raw/d.png", "deep/e.png", "deep/f.txt")
    for name, colour in zip(names, "red green blue white pink gold gray".split(), strict=True):
        (picture if not name.endswith("txt") else passage)(folder / name, colour)

    def left(exclude: Sequence[str] = ()) -> set[str]:
        with ChromaStore(folder / ".store", fingerprint=FakeEmbedder().fingerprint) as fresh:
            fresh.delete(list(fresh.ids()))
            report = index_paths([folder], FakeEmbedder(), fresh, exclude=exclude)
            assert report.left_out.get("excluded", 0) == 0 or exclude or (folder / ".abcignore").exists()
            return {Path(record.source).relative_to(folder).as_posix() for record in fresh.records()}

    assert left() == set(names)
    assert left(["*.png"]) == {"b.jpg", "deep/f.txt"}
    assert left(["/raw/", "!b.jpg", "*.txt"]) == {"a.png", "b.jpg", "deep/raw/d.png", "deep/e.png"}
    (folder / ".abcignore").write_text("# cameras\nraw/*\n!keep.png\n")
    assert left() == set(names) - {"raw/c.png"}  # a pattern with a slash holds in its own folder
    (folder / "deep" / ".abcignore").write_text("raw\n*.txt\n")
    assert left() == {"a.png", "b.jpg", "raw/keep.png", "deep/e.png"}
    (folder / "deep" / ".abcignore").write_text("!e.png\n")
    assert "deep/e.png" in left(["e.png"])  # the nearest rule decides


def test_an_ignore_file_that_leads_elsewhere_is_not_read(tmp_path: Path, folder: Path, index: Index) -> None:
    picture(folder / "a.png", "red")
    (folder / ".abcignore").symlink_to(passage(tmp_path / "secret", "*.png"))
    report, _ = index()
    assert (counts(report), report.left_out) == ((1, 0, 0, 0), {"links that lead elsewhere": 1})


def test_unusable_patterns(folder: Path, index: Index, store: ChromaStore) -> None:
    with pytest.raises(InputError, match="exclude must be a list"):
        index_paths([folder], FakeEmbedder(), store, exclude="*.png")
    (folder / ".abcignore").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="patterns"):
        index()
    (folder / ".abcignore").unlink()
    os.mkfifo(folder / ".abcignore")
    with pytest.raises(InputError, match="not a regular file"):
        index()


def test_a_tilde_is_the_home_folder(folder: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(folder / "x.png", "red")
    monkeypatch.setenv("HOME", str(folder))
    assert counts(index(Path("~/x.png"))[0]) == (1, 0, 0, 0)


@pytest.mark.parametrize("missing", ["nowhere", "nowhere/x.png", "~nobody-of-this-name/x.png", "n" * 300])
def test_a_missing_path_is_named_before_anything_is_embedded(
    missing: str, folder: Path, store: ChromaStore, index: Index
) -> None:
    picture(folder / "x.png", "red")
    with pytest.raises(InputError, match=f"{missing}: no such file or folder"):
        index(folder, Path(missing))
    assert store.count() == 0


def test_a_single_path_is_no_list(store: ChromaStore, tmp_path: Path) -> None:
    for single in ("photos", tmp_path):
        with pytest.raises(InputError, match="paths must be a list"):
            index_paths(single, FakeEmbedder(), store)  # type: ignore[arg-type]


def test_the_same_passage_in_two_files_is_stored_once(folder: Path, store: ChromaStore, index: Index) -> None:
    passage(folder / "a.txt", "shared\n\nonly in a\n\nshared")
    passage(folder / "b.txt", "only in b\n\nshared")
    report, embedded = index()
    assert (counts(report), embedded) == ((3, 0, 0, 0), 3)
    assert sources(store)[text_id("shared")] == str(folder / "a.txt")
    assert counts(index()[0]) == (0, 3, 0, 0)


@pytest.mark.parametrize("apart", [False, True])
def test_equal_content_at_two_paths_is_counted_and_stored_once(
    apart: bool, folder: Path, store: ChromaStore, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    if apart:
        monkeypatch.setattr(ingest, "_CHUNK", 1)
    one = picture(folder / "a.png", "red")
    shutil.copy(one, folder / "z.png")
    picture(folder / "m.png", "blue")
    report, embedded = index()
    assert (counts(report), embedded, store.count()) == ((2, 0, 0, 0), 2, 2)
    assert sources(store)[id_of(one)] == str(one)
    report, embedded = index()
    assert (counts(report), embedded) == ((0, 2, 0, 0), 0)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.bmp", {"a.bmp", "b1.bmp"}),
        ("b[12].bmp", {"b1.bmp"}),
        ("?.bmp", {"a.bmp"}),
        ("**/*.bmp", {"a.bmp", "b1.bmp", "sub/c.bmp", "sub/deep/d.bmp"}),
        ("*/*.bmp", {"sub/c.bmp"}),
        ("s*", {"sub/c.bmp", "sub/e.txt", "sub/deep/d.bmp"}),  # a folder is all that is in it
        ("*.tif", set()),
        ("a.bmp", set()),  # no pattern
        ("nowhere/*", set()),
    ],
)
def test_the_files_of_a_pattern(folder: Path, pattern: str, found: set[str]) -> None:
    (folder / "sub" / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    names = ("a.bmp", "b1.bmp", "sub/c.bmp", "sub/deep/d.bmp", ".hidden/f.bmp")
    for name, colour in zip(names, ("red", "green", "blue", "white", "black"), strict=True):
        picture(folder / name, colour)
    passage(folder / "sub" / "e.txt", "words")
    outside = picture(folder.parent / "z.bmp", "red")
    (folder / "link.bmp").symlink_to(outside)
    assert {path.relative_to(folder).as_posix() for path in files_matching(str(folder / pattern))} == found
    left = {path.name for path in files_matching(str(folder / "**" / "*.bmp"), exclude=["deep/", "/a*"])}
    assert left == {"b1.bmp", "c.bmp"}

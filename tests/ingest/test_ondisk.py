import tracemalloc

from abc_rag.ingest.ondisk import OnDisk


def test_it_is_a_mapping_in_both_directions() -> None:
    pairs = OnDisk()
    pairs.put((f"k{i:04}", f"v{i % 3}") for i in range(2500))
    pairs["\udcff"] = ""  # a name that is no Unicode
    pairs["k0001"] = "other"
    del pairs["k0000"]
    assert (len(pairs), pairs["k0001"], pairs.get("none"), "k0000" in pairs) == (2500, "other", None, False)
    assert list(pairs) == [*(f"k{i:04}" for i in range(1, 2500)), "\udcff"]
    assert dict(pairs.pairs()) == dict(pairs.items())
    assert pairs.keys_of("v0") == {f"k{i:04}" for i in range(3, 2500, 3)}
    assert pairs.keys_of("") == {"\udcff"}
    assert list(pairs.distinct()) == ["", "other", "v0", "v1", "v2"]
    pairs.close()
    pairs.close()


def test_it_takes_little_memory() -> None:
    pairs = OnDisk()
    tracemalloc.start()
    try:
        pairs.put((f"image-{i:032}", f"/a/folder/with/a/long/name/picture-{i:06}.jpg") for i in range(50_000))
        assert sum(1 for _ in pairs.pairs()) == 50_000
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pairs.close()
    assert most < 2 * 2**20

"""The network over sequences that lie end to end: every way to attend is exact, and no sequence knows of another."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from helpers import FIXTURE
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from abc_rag import load_embedder
from abc_rag.errors import MissingExtraError
from abc_rag.models.abc.family import ABCFamily
from abc_rag.models.kernels import attention as _attention
from abc_rag.models.kernels import blocked_attention as _blocked_attention
from abc_rag.models.kernels import layers as _layers
from abc_rag.models.kernels.attention import (
    Segments,
    _by_length,
    _eager,
    _padded,
    attend_in_window,
    choose_attention,
)
from abc_rag.models.kernels.blocked_attention import attend_by_blocks
from abc_rag.models.kernels.layers import linear, onednn_product
from abc_rag.models.qwen2_vl.network import normalise
from abc_rag.models.qwen2_vl.packed import PackedQwen2VL

CPU = torch.device("cpu")
EXACT = {"rtol": 0, "atol": 2e-6}
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

LENGTHS = {
    "one token": [1],
    "one sequence": [17],
    "one of each": [9, 5, 1, 30],
    "one length": [6] * 7,
    "runs": [12, 12, 12, 7, 3, 3, 1, 1, 1, 12],
}
# Heads of the queries, and of keys and values.
HEADS = {"all": (4, 4), "grouped": (6, 2), "one": (4, 1)}


def by_blocks(q: Any, k: Any, v: Any, segments: Segments, causal: bool) -> torch.Tensor:
    assert not causal
    return _by_length(q, k, v, segments, False)


def random_qkv(lengths: list[int], heads: int, kv_heads: int, dim: int = 8) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(len(lengths) + heads)
    return tuple(torch.randn(sum(lengths), count, dim, generator=generator) for count in (heads, kv_heads, kv_heads))


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], causal: bool) -> torch.Tensor:
    """Softmax of products, token by token, in double precision."""
    out = torch.empty_like(q)
    groups = q.shape[1] // k.shape[1]
    begin = 0
    for length in lengths:
        for token, head in itertools.product(range(length), range(q.shape[1])):
            last = token + 1 if causal else length
            keys, values = (x[begin : begin + last, head // groups].double() for x in (k, v))
            scores = keys @ q[begin + token, head].double() / q.shape[2] ** 0.5
            out[begin + token, head] = (scores.softmax(0) @ values).float()
        begin += length
    return out


# --- Attention --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("attend", [_by_length, _eager, _padded])
def test_every_way_to_attend_is_attention(
    attend: Any, lengths: list[int], heads: tuple[int, int], causal: bool
) -> None:
    q, k, v = random_qkv(lengths, *heads)
    found = attend(q, k, v, Segments(lengths, CPU), causal)
    torch.testing.assert_close(found, by_hand(q, k, v, lengths, causal), **EXACT)
    alone = [
        attend(*parts, Segments([length], CPU), causal)
        for length, parts in zip(lengths, zip(*(x.split(lengths) for x in (q, k, v)), strict=True), strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(alone), **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attend", [_by_length, _eager, _padded])
def test_what_goes_in_stays_as_it_is(attend: Any, causal: bool) -> None:
    q, k, v = random_qkv([5, 5, 2], 6, 2)
    before = [x.clone() for x in (q, k, v)]
    attend(q, k, v, Segments([5, 5, 2], CPU), causal)
    assert all(torch.equal(x, old) for x, old in zip((q, k, v), before, strict=True))


@pytest.mark.parametrize("attend", [_by_length, _eager, _padded])
def test_half_precision_is_near(attend: Any) -> None:
    lengths = [20, 20, 7]
    q, k, v = random_qkv(lengths, 6, 2)
    found = attend(*(x.bfloat16() for x in (q, k, v)), Segments(lengths, CPU), False)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), by_hand(q, k, v, lengths, False), rtol=0, atol=0.03)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("attend", [_by_length, _eager, _padded])
def test_one_sequence_cannot_spoil_another(attend: Any, causal: bool) -> None:
    lengths = [4, 4, 6, 4]
    q, k, v = random_qkv(lengths, 4, 2)
    whole = attend(q, k, v, Segments(lengths, CPU), causal)
    for x in (q, k, v):
        x[4:8] = torch.nan
    found = attend(q, k, v, Segments(lengths, CPU), causal)
    assert found[4:8].isnan().all()
    others = torch.cat([torch.arange(4), torch.arange(8, 18)])
    torch.testing.assert_close(found[others], whole[others], **EXACT)


def in_blocks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Queries ``(n, groups, dim)``, keys and values ``(m, dim)`` of the second of two heads."""
    heads = [torch.stack([torch.full_like(x, 1e3), x], dim=1) for x in (q, k, v)]
    out = torch.full_like(heads[0], torch.nan)
    attend_by_blocks(*heads, out)
    return out[:, 1]


def softmax_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """`in_blocks` in double precision."""
    weights = (q.double() @ k.double().t() * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v.double()).float()


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")
# Queries of less than one block, and of several of several sizes; keys that are rounded up, and keys that are not.
@pytest.mark.parametrize("at_a_time", [1, 1 << 17, 1 << 20])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("queries", "keys"), [(7, 40), (210, 300), (333, 384), (700, 1000)])
def test_blocks_of_scores_are_one_attention(
    queries: int, keys: int, groups: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_blocked_attention, "_SCORES", at_a_time)
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(queries, groups, 16, generator=generator)
    k, v = torch.randn(2, keys, 16, generator=generator)
    torch.testing.assert_close(in_blocks(q, k, v), softmax_of(q, k, v), **EXACT)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")
# With 0.2, no score needs to be made relative to the largest; with 50, exp of the largest would be infinite.
@pytest.mark.parametrize("size", [0.2, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("shift", [-30.0, 0.0, 30.0])
def test_scores_of_any_size_are_weighed(size: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k = (size * torch.randn(200, 16, generator=generator) for _ in range(2))
    # Along one axis all are alike: every score of a row is as much larger, or smaller.
    q[:, 0], k[:, 0] = abs(shift), shift
    v = torch.randn(200, 16, generator=generator)
    expected = softmax_of(q[:, None], k, v)
    found = in_blocks(q[:, None], k, v)
    # Scores themselves have float32's precision: a thousand of them is known to 1e-4.
    largest = (q.norm(dim=1).max() * k.norm(dim=1).max() / 4).item()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 + 1e-6 * largest)
    usual = nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]
    assert (found[:, 0] - expected[:, 0]).abs().max() <= 3 * (usual - expected[:, 0]).abs().max() + 1e-6


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")
def test_large_values_and_small_scores_stay_finite() -> None:
    q, k = torch.full((2, 300, 16), 5.0)
    # Scores of 144 in powers of two, all alike and with either sign: out of float32's range, were they not shifted.
    for sign in (1, -1):
        v = torch.full((300, 16), 1e30)
        assert torch.allclose(in_blocks(q[:, None], sign * k, v)[:, 0], v, rtol=1e-5)
    # The largest that are not shifted.
    at = (_blocked_attention._LARGEST / 1.4427 / 4) ** 0.5 * 0.999
    for sign in (1, -1):
        v = torch.full((300, 16), 1e6)
        q, k = torch.full((2, 300, 16), at)
        assert torch.allclose(in_blocks(q[:, None], sign * k, v)[:, 0], v, rtol=1e-5)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")
def test_a_query_that_is_no_number_spoils_no_other() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = torch.randn(3, 200, 16, generator=generator)
    whole = in_blocks(q[:, None], k, v)
    q[3] = torch.nan
    found = in_blocks(q[:, None], k, v)
    assert found[3].isnan().all()
    torch.testing.assert_close(found[4:], whole[4:], **EXACT)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")
def test_blocks_are_taken_where_they_are_faster_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        calls.append(len(k))
        attend_by_blocks(q, k, v, out)

    lengths = [128, 128, 128, 50, 10]
    q, k, v = random_qkv(lengths, 6, 2)
    monkeypatch.setattr(_attention, "attend_by_blocks", counted)
    for module in (_attention, _blocked_attention):
        monkeypatch.setattr(module, "LEAST_SCORES", 3 * 128 * 128)  # of the three heads with the same keys
    for faster in (False, True):
        monkeypatch.setattr(_attention, "onednn_is_faster", lambda faster=faster: faster)
        for causal in (True, False):
            expected = by_hand(q, k, v, lengths, causal)
            torch.testing.assert_close(_by_length(q, k, v, Segments(lengths, CPU), causal), expected, **EXACT)
            assert calls == ([128] * 3 if faster and not causal else [])


def test_which_way_is_chosen() -> None:
    assert choose_attention("eager", device=CPU, dtype=torch.float32) is _eager
    assert choose_attention("sdpa", device=CPU, dtype=torch.float32) is _by_length
    assert choose_attention("sdpa", device=torch.device("mps"), dtype=torch.float32) is _padded
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match="pip install flash-attn"):
            choose_attention("flash_attention_2", device=CPU, dtype=torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_what_a_gpu_chooses_is_attention(lengths: list[int], heads: tuple[int, int], causal: bool) -> None:
    q, k, v = random_qkv(lengths, *heads, dim=64)
    for dtype, atol in ((torch.bfloat16, 0.03), (torch.float32, 1e-5)):
        device = torch.device("cuda")
        attend = choose_attention("sdpa", device=device, dtype=dtype)
        found = attend(*(x.to(device, dtype) for x in (q, k, v)), Segments(lengths, device), causal)
        torch.testing.assert_close(found.float().cpu(), by_hand(q, k, v, lengths, causal), rtol=0, atol=atol)


# --- Segments ---------------------------------------------------------------------------------------------


def test_segments_say_where_sequences_lie() -> None:
    segments = Segments([3, 3, 1, 2], CPU)
    assert (segments.total, segments.longest) == (9, 3)
    assert segments.counts.tolist() == [3, 3, 1, 2]
    assert segments.bounds.tolist() == [0, 3, 6, 7, 9]
    assert segments.bounds.dtype == torch.int32
    assert segments.positions.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1]
    assert segments.rows.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 3]
    assert segments.real.int().tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert list(segments.runs()) == [(0, 2, 3), (6, 1, 1), (7, 1, 2)]


def test_equal_lengths_apart_are_two_runs() -> None:
    assert list(Segments([2, 1, 2, 2], CPU).runs()) == [(0, 1, 2), (2, 1, 1), (3, 2, 2)]


# --- Linear layers ----------------------------------------------------------------------------------------


class Doubled(nn.Linear):
    """Stands for a layer of another library, such as a quantised one."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.fixture(params=[False, True], ids=["default", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both of torch's libraries, whichever is faster here."""
    if request.param and not HAS_ONEDNN:
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(_layers, "onednn_is_faster", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 200])
def test_a_layer_is_its_product(library: bool, rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    layer, x = nn.Linear(48, 70, bias=bias).requires_grad_(False), torch.randn(rows, 48)
    expected = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
    torch.testing.assert_close(linear(layer, x), expected.float(), rtol=0, atol=3e-6)
    torch.testing.assert_close(linear(layer, x), layer(x), rtol=0, atol=3e-6)


def test_strides_do_not_matter(library: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 30).requires_grad_(False), torch.randn(80, 60).T[:, :40][:64]
    assert not x.is_contiguous()
    torch.testing.assert_close(linear(layer, x), layer(x), rtol=0, atol=3e-6)


@pytest.mark.parametrize("rows", [2, 100])
def test_other_layers_and_precisions_are_called_as_they_are(library: bool, rows: int) -> None:
    layer, x = Doubled(16, 8).requires_grad_(False), torch.randn(rows, 16)
    assert torch.equal(linear(layer, x), layer(x))
    half = nn.Linear(16, 8, dtype=torch.bfloat16).requires_grad_(False)
    assert torch.equal(linear(half, x.bfloat16()), half(x.bfloat16()))


@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("kind", [nn.Linear, Doubled])
def test_an_adapter_counts_where_it_is_on(library: bool, kind: Any, rows: int) -> None:
    torch.manual_seed(0)
    holder = nn.Sequential(kind(32, 24))
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=12, target_modules=["0"], init_lora_weights=False), holder)
    layer: Any = holder[0]
    holder.requires_grad_(False)
    x = torch.randn(rows, 32)
    on, base = linear(layer, x), linear(layer.get_base_layer(), x)
    low, high = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(on, base + 3 * (x @ low.T @ high.T), rtol=0, atol=1e-5)
    torch.testing.assert_close(on, layer(x), rtol=0, atol=1e-5)
    layer.enable_adapters(False)
    assert torch.equal(linear(layer, x), base)
    assert (on - base).abs().max() > 0.1
    layer.enable_adapters(True)
    if kind is nn.Linear:
        layer.merge()
        torch.testing.assert_close(linear(layer, x), on, rtol=0, atol=1e-5)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of torch has no oneDNN")
@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 8, 8), (33, 100, 60), (300, 588, 1280)])
def test_onednn_computes_what_torch_does(rows: int, inner: int, outer: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, inner), torch.randn(outer, inner) / inner**0.5, torch.randn(outer)
    expected = nn.functional.linear(x.double(), weight.double(), bias.double()).float()
    theirs = (nn.functional.linear(x, weight, bias) - expected).abs().max()
    ours = (onednn_product(x, weight, bias) - expected).abs().max()
    # The same precision, not a smaller one: sums of 588 products of float32 differ by some 1e-6, and 1e-5 is the bar
    # for vectors.
    assert ours <= max(2 * float(theirs), 1e-5)
    torch.testing.assert_close(onednn_product(x, weight), expected - bias, rtol=0, atol=1e-5)


# --- Pixels -----------------------------------------------------------------------------------------------


def test_all_256_levels_are_normalised_as_published() -> None:
    levels = np.tile(np.arange(256, dtype=np.uint8), 3)
    found = normalise(torch.from_numpy(levels)[None]).numpy().reshape(3, 256)
    # transformers rescales in double precision, rounds to single precision, then normalises in that.
    rescaled = (np.arange(256).astype(np.float64) * (1 / 255)).astype(np.float32)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)[:, None]
    deviation = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)[:, None]
    expected = (rescaled - mean) / deviation
    assert expected.dtype == found.dtype == np.float32
    assert (found == expected).all()


def test_normalising_leaves_the_pixels_alone() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(2, 3)
    before = pixels.clone()
    both = normalise(pixels)
    assert torch.equal(pixels, before)
    assert torch.equal(both[1], normalise(pixels[1:])[0])


# --- The whole network ------------------------------------------------------------------------------------

WAYS = {"by length": _by_length, "eager": _eager, "padded": _padded}


@pytest.fixture(scope="module")
def family() -> ABCFamily:
    found = load_embedder(FIXTURE, device="cpu").family  # type: ignore[attr-defined]
    assert isinstance(found, ABCFamily)
    return found


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def packed(request: pytest.FixtureRequest, family: ABCFamily) -> PackedQwen2VL:
    made = family.network.packed
    made._attend = request.param
    return made


def states_of(packed: PackedQwen2VL, rows: list[list[int]], **options: Any) -> list[torch.Tensor]:
    lengths = [len(row) for row in rows]
    ids = torch.tensor([token for row in rows for token in row])
    with torch.inference_mode():
        states = packed.hidden_states(ids, Segments(lengths, CPU), **options)
    return list(states.split(lengths))


def test_the_first_token_sees_the_last_only_without_an_order(packed: PackedQwen2VL) -> None:
    rows = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 10], [11, 12]]
    first, second, _ = states_of(packed, rows)
    assert (first[0] - second[0]).abs().max() > 1e-2
    first, second, _ = states_of(packed, rows, causal=True)
    assert (first[:4] - second[:4]).abs().max() < 1e-6
    assert (first[4] - second[4]).abs().max() > 1e-2


def test_neighbours_do_not_matter(packed: PackedQwen2VL) -> None:
    rows = [[5, 6, 7, 8, 9], [20, 21, 22], [20, 21, 22], [30], [40] * 40]
    for causal in (False, True):
        together = states_of(packed, rows, causal=causal)
        backwards = states_of(packed, rows[::-1], causal=causal)[::-1]
        for row, one, other in zip(rows, together, backwards, strict=True):
            torch.testing.assert_close(one, states_of(packed, [row], causal=causal)[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_packed_is_what_padded_is(packed: PackedQwen2VL, family: ABCFamily) -> None:
    rows = [[5, 6, 7, 8, 9], [20, 21, 22], [30], [40, 41, 42, 43]]
    ids = torch.tensor([row + [0] * (5 - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    for causal in (False, True):
        with torch.inference_mode():
            padded = family.network.backbone.hidden_states(ids, lengths=lengths, causal=causal)
        for row, found in enumerate(states_of(packed, rows, causal=causal)):
            torch.testing.assert_close(found, padded[row, : len(found)], rtol=0, atol=1e-5)


def test_positions_are_those_given(packed: PackedQwen2VL) -> None:
    row = [5, 6, 7, 8]
    plain = states_of(packed, [row, row])
    given = states_of(packed, [row, row], position_ids=torch.tensor([0, 1, 2, 3, 0, 1, 1, 5]))
    torch.testing.assert_close(given[0], plain[0], rtol=0, atol=1e-5)
    assert (given[1] - plain[1]).abs().max() > 1e-2


def test_features_go_where_they_belong(packed: PackedQwen2VL, family: ABCFamily) -> None:
    image = family.network.backbone.image_token_id
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, family.network.backbone.hidden_size, generator=generator)
    rows = [[7, image, image, 8], [9, 9], [image, image, image, 3]]
    at = torch.tensor([1, 2, 6, 7, 8])
    together = states_of(packed, rows, features=features, image_positions=at)
    first = states_of(packed, rows[:1], features=features[:2], image_positions=at[:2])[0]
    last = states_of(packed, rows[2:], features=features[2:], image_positions=at[2:] - 6)[0]
    for found, expected in zip(together, (first, states_of(packed, [[9, 9]])[0], last), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_bad_sequence_stays_bad_alone(packed: PackedQwen2VL, family: ABCFamily) -> None:
    image = family.network.backbone.image_token_id
    rows = [[5, 6, 7, 8], [image, 6, 7, 8], [9, 10]]
    nothing = torch.full((1, family.network.backbone.hidden_size), torch.nan)
    with torch.inference_mode():
        segments = Segments([4, 4, 2], CPU)
        ids = torch.tensor([token for row in rows for token in row])
        states = packed.hidden_states(ids, segments, features=nothing, image_positions=torch.tensor([4]))
        pooled = family.network.pool_packed(states, ids, segments)
    assert pooled[1].isnan().all()
    for row in (0, 2):
        torch.testing.assert_close(states.split([4, 4, 2])[row], states_of(packed, [rows[row]])[0], rtol=0, atol=1e-5)
        assert pooled[row].isfinite().all()


def test_pictures_do_not_matter_to_one_another(family: ABCFamily) -> None:
    names = ("shapes_56x56", "noise_333x257", "shapes_224x224")
    opened = [family.facts.open(str(FIXTURE / "images" / f"{name}.png")) for name in names]
    together = family.see(opened)
    for one, found in zip(opened, together, strict=True):
        assert len(found) == family.picture_tokens(one)
        torch.testing.assert_close(found, family.see([one])[0], rtol=0, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(found, family.network.backbone.image_features([one]), rtol=0, atol=1e-5)
        assert found.untyped_storage().nbytes() == found.nbytes  # nothing else is kept with it


def test_pooling_counts_an_exclamation_mark_but_does_not_sum_it(family: ABCFamily) -> None:
    states = torch.tensor([[1.0, 2.0], [3.0, 4.0], [torch.nan, 7.0], [5.0, 6.0]])
    found = family.network.pool_packed(states, torch.tensor([4, 5, 0, 6]), Segments([2, 2], CPU))
    assert found.tolist() == [[2.0, 3.0], [2.5, 3.0]]


@pytest.mark.parametrize("lengths", [[1300, 520, 90, 3], [700, 700], [100, 1], [101]])
def test_a_window_hides_what_is_farther_away(lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    total, window, more = sum(lengths), 100, 5
    q = torch.randn(total + more, 4, 8, generator=generator)
    k, v = (torch.randn(total + more, 2, 8, generator=generator) for _ in range(2))
    segments = Segments(lengths, CPU)
    at = segments.positions
    seen = (segments.rows[:, None] == segments.rows[None]) & ((at[:, None] - at[None]).abs() <= window)
    keys, values = (x[:total].repeat_interleave(2, dim=1).transpose(0, 1) for x in (k, v))
    scores = (q[:total].transpose(0, 1) @ keys.transpose(1, 2) * 8**-0.5).masked_fill(~seen, -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(0, 1)
    for attend in (_by_length, _eager, _padded):
        found = attend_in_window(attend, q, k, v, segments, window)
        torch.testing.assert_close(found[:total], expected, **EXACT)
        assert found.shape == q.shape
        assert not found[total:].any()
    unlimited = attend_in_window(_by_length, q, k, v, segments, None)
    torch.testing.assert_close(unlimited[:total], _by_length(q[:total], k[:total], v[:total], segments, False), **EXACT)

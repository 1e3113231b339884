"""Padding, packing, caches, chunks: segments say what transformers' own matrix says."""

import math
from itertools import pairwise

import pytest
import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from anchor_models.integration import masks
from anchor_models.integration.sequences import Segments, from_segments, is_segments
from anchor_models.transformers import options, record
from tests.anchor_models.integration.tiny import (
    ROUNDING,
    SIZES,
    THETA,
    N,
    build,
    far,
    logits,
    tokens,
)

# Most of the time would go into annotations, which the other tests check.
UNCHECKED = pytest.mark.usefixtures("unchecked_annotations")

LEFT = (torch.arange(N) >= torch.tensor([[0], [35]])).long()
RIGHT = (torch.arange(N) < torch.tensor([[N], [65]])).long()
HOLES = torch.ones(2, N, dtype=torch.long)
HOLES[0, [0, 5, 6, 45, 75]] = 0
HOLES[1, 20:60] = 0
RESTARTING = torch.cat([torch.arange(n) for n in (45, 1, 35, 19)])[None]
BOUNDS = torch.tensor([0, 45, 46, 81, N], dtype=torch.int32)


def positions(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


def cache_of(model, kind, most=N):
    if kind == "dynamic":
        return transformers.DynamicCache(config=model.config)
    return transformers.StaticCache(config=model.config, max_cache_len=most)


def matrix(segments, shape):
    """Segments as the matrix they stand for, [B, Nq, Nk]."""
    seen = torch.zeros(shape, dtype=torch.bool)
    for text in from_segments(segments):
        queries, keys = torch.arange(shape[1])[text.queries], torch.arange(shape[2])[text.keys]
        lower = torch.ones(len(queries), len(keys), dtype=torch.bool)
        lower = lower.tril(len(keys) - len(queries))
        for row in range(text.rows.start, text.rows.stop):
            seen[row, queries[:, None], keys] = lower
    return seen


@pytest.fixture
def judged():
    """Models run sdpa with their own mask, while every mask is held to ours: [what it was]."""
    seen = []

    def judge(**asked):
        exact = sdpa_mask(**(asked | {"allow_is_causal_skip": False}))
        found = masks.causal_segments(**asked)
        if found is None:
            seen.append("none")
            n_queries, n_keys = exact.shape[2:]
            assert torch.equal(exact[0, 0], torch.ones_like(exact[0, 0]).tril(n_keys - n_queries))
            assert (exact == exact[:1]).all()
        elif is_segments(found):
            seen.append("segments")
            found = found.plain
            exact = exact[:, 0].expand(found.shape[0], -1, -1)
            ours = matrix(found, exact.shape)
            is_query = ours.any(-1, keepdim=True)  # a row of padding is nobody's
            assert torch.equal(ours, exact & is_query)
            padding = asked.get("attention_mask")
            written = int((found[0, 0, 1] >= 0).nonzero()[-1]) + 1
            if padding is None:
                assert is_query.all()
            else:
                rows = padding[:, written - exact.shape[1] : written].bool()
                assert torch.equal(is_query[..., 0].expand_as(rows), rows)
        else:
            seen.append("matrix")
            assert torch.equal(found, sdpa_mask(**asked))
        return sdpa_mask(**asked)

    AttentionMaskInterface.register("judged", judge)
    AttentionInterface.register("judged", AttentionInterface()["sdpa"])
    yield seen
    del AttentionMaskInterface._global_mapping["judged"]
    del AttentionInterface._global_mapping["judged"]


@pytest.mark.parametrize("strip", [2**24, 7 * N])
@pytest.mark.parametrize(
    ("expected", "given"),
    [
        ("none", {}),
        ("none", {"attention_mask": torch.ones(2, N)}),
        ("segments", {"attention_mask": LEFT}),
        ("segments", {"attention_mask": RIGHT}),
        ("segments", {"attention_mask": HOLES}),
        ("segments", {"position_ids": RESTARTING, "use_cache": False}),
    ],
)
def test_segments_stand_for_the_matrix_of_transformers(
    judged, monkeypatch, expected, given, strip
):
    monkeypatch.setattr(masks, "STRIP", strip)
    logits(build(), tokens(2), "judged", **given)
    assert judged == [expected]


@pytest.mark.parametrize("mask", [None, LEFT, RIGHT, HOLES])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_segments_follow_a_cache_chunk_by_chunk(judged, kind, mask):
    model, ids = build(), tokens(2)
    cache = cache_of(model, kind, N + 30)
    for start, end in ((0, 32), (32, 45), (45, 99), (99, 100)):
        given = {} if mask is None else {"attention_mask": mask[:, :end]}
        logits(model, ids[:, start:end], "judged", past_key_values=cache, **given)
    first = "segments" if kind == "static" or mask is LEFT or mask is HOLES else "none"
    one = "none" if kind == "dynamic" and mask is None else "matrix"
    assert judged == [first, "segments", "segments", one]


def test_masks_of_another_kind_are_left_to_sdpa(judged):
    logits(build("qwen2_sliding"), tokens(), "judged")
    assert sorted(judged) == ["matrix", "none"]
    asked = {"batch_size": 1, "kv_length": N, "q_length": N, "q_offset": 0, "device": "cpu"}
    config = transformers.LlamaConfig()
    plain = transformers.masking_utils.causal_mask_function
    others = {
        "prefix": lambda b, h, q, kv: (kv <= q) | (kv < 5),
        "sliding": lambda b, h, q, kv: (kv <= q) & (kv > q - 15),
        "strided": lambda b, h, q, kv: (kv <= q) & ((q - kv) % 2 == 0),
        "self excluded": lambda b, h, q, kv: (kv < q) | (q == 0),
        "last row looks ahead no further": lambda b, h, q, kv: (
            (kv <= q) & ((q < N - 1) | (kv > 3))
        ),
    }
    for function in others.values():
        given = dict(asked)
        if "cache_position" in sdpa_mask.__code__.co_varnames:  # transformers 4
            given = {"batch_size": 1, "kv_length": N, "cache_position": torch.arange(N)}
        given |= {"mask_function": function, "attention_mask": None, "config": config}
        assert not is_segments(masks.causal_segments(**given))
        assert masks.causal_segments(**(given | {"mask_function": plain})) is None


def request(function, **more):
    """What transformers asks for a prompt of N tokens with this mask function."""
    asked = {"batch_size": 1, "kv_length": N, "q_length": N, "q_offset": 0, "device": "cpu"}
    if "cache_position" in sdpa_mask.__code__.co_varnames:  # transformers 4
        asked = {"batch_size": 1, "kv_length": N, "cache_position": torch.arange(N)}
    config = transformers.LlamaConfig()
    return asked | {"mask_function": function, "attention_mask": None, "config": config} | more


@pytest.mark.parametrize("seed", range(8))
def test_packed_texts_are_read_from_their_function_as_from_their_matrix(seed, monkeypatch):
    """Of a known function nothing is drawn: a packed prompt costs no more than another."""
    from transformers import masking_utils

    drawn = []
    own = masking_utils.sdpa_mask
    monkeypatch.setattr(masking_utils, "sdpa_mask", lambda **x: drawn.append(x) or own(**x))
    cuts = torch.randperm(N - 1, generator=torch.Generator().manual_seed(seed))[: seed + 1] + 1
    restarts = torch.zeros(1, N, dtype=torch.long)
    restarts[0, cuts] = 1
    texts = restarts.cumsum(1)
    function = masking_utils.packed_sequence_mask_function(texts)
    function = masking_utils.and_masks(masking_utils.causal_mask_function, function)
    asked = request(function, allow_is_causal_skip=False)
    found = masks.causal_segments(**asked)
    assert drawn == []
    # The same under a function that is not known, which is drawn and looked at.
    same = masks.causal_segments(**asked | {"mask_function": lambda *x: function(*x)})
    assert drawn
    assert torch.equal(matrix(found, (1, N, N)), matrix(same, (1, N, N)))
    assert torch.equal(matrix(found, (1, N, N)), own(**asked)[:, 0])


def test_keys_beyond_the_attention_mask_are_no_tokens():
    from transformers.masking_utils import causal_mask_function

    short = torch.ones(1, N - 10, dtype=torch.bool)
    asked = request(causal_mask_function, attention_mask=short)
    found = matrix(masks.causal_segments(**asked), (1, N, N))
    assert torch.equal(found[:, : N - 10], sdpa_mask(**asked)[:, 0, : N - 10])
    assert not found[:, N - 10 :].any()  # rows of padding are nobody's


def test_packed_texts_against_a_cache_are_left_to_sdpa():
    """Their function is looked at from the first key on, where queries of a chunk are not."""
    rows = {"q_length": N - 60, "q_offset": 60}
    if "cache_position" in sdpa_mask.__code__.co_varnames:  # transformers 4
        rows = {"cache_position": torch.arange(60, N)}
    for start in (40, 70):
        asked = request(lambda b, h, q, k, at=start: (k <= q) & ((q < at) | (k >= at)), **rows)
        assert torch.equal(masks.causal_segments(**asked), sdpa_mask(**asked))


@pytest.mark.parametrize("hidden", [0, 1])
@pytest.mark.parametrize("kind", ["sliding_window_causal_mask_function", "chunk"])
def test_a_window_or_chunk_as_long_as_the_prompt_is_none(kind, hidden):
    from transformers import masking_utils

    size = N - hidden
    if kind == "chunk":
        function = masking_utils.chunked_causal_mask_function(size, torch.zeros(1).long())
    else:
        function = getattr(masking_utils, kind)(size)
    asked = request(function, local_size=size)
    found = masks.causal_segments(**asked)
    if hidden:
        assert torch.equal(found, sdpa_mask(**asked))
        assert not torch.equal(found[0, 0], torch.ones(N, N, dtype=torch.bool).tril())
    else:
        assert found is None
        padded = masks.causal_segments(**asked | {"attention_mask": LEFT[1:].bool()})
        own = sdpa_mask(**asked | {"attention_mask": LEFT[1:].bool()})[:, 0]
        assert torch.equal(matrix(padded, (1, N, N))[:, 35:], own[:, 35:])


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="transformers 4 has no such request"
)
def test_a_model_that_works_on_the_matrix_itself_gets_it():
    asked = {"batch_size": 1, "kv_length": N, "q_length": N, "q_offset": 0, "device": "cpu"}
    asked |= {"config": transformers.LlamaConfig(), "attention_mask": LEFT[1:].bool()}
    asked["mask_function"] = transformers.masking_utils.causal_mask_function
    assert is_segments(masks.causal_segments(**asked))
    for more in ({"allow_is_causal_skip": False}, {"kv_offset": 3}):
        found = masks.causal_segments(**(asked | more))
        assert torch.equal(found, sdpa_mask(**(asked | more)))


def test_two_queries_against_a_cache_are_dense_for_blocks_of_any_size():
    model, ids = build(), tokens(2)
    with options(theta=-math.inf, block_size=1, step=4), record() as stats:
        found = run_in_chunks(model, ids, (4, 6, 7), "dynamic", LEFT * 0 + 1)
    assert [call.ran for call in stats.calls] == ["dense"] * 4
    assert far(found, logits(model, ids[:, :7], "sdpa")) <= ROUNDING


@UNCHECKED
@pytest.mark.parametrize("theta", [THETA, math.inf])
@pytest.mark.parametrize(
    ("family", "mask"),
    [
        ("llama", LEFT),
        ("llama", RIGHT),
        # A window counts the places of padding: there, a row with holes has no unpadded twin.
        ("llama", HOLES),
        ("qwen2_sliding", LEFT),
        ("qwen2_sliding", RIGHT),
        ("gemma3", LEFT),
        ("gemma3", RIGHT),
    ],
)
def test_padded_rows_equal_unpadded_ones(family, mask, theta):
    model, ids = build(family), tokens(2)
    with options(theta=theta, **SIZES):
        found = logits(model, ids, attention_mask=mask, position_ids=positions(mask))
        for row, real in enumerate(mask.bool()):
            alone = logits(model, ids[row : row + 1, real])
            assert far(found[row, real], alone[0]) <= ROUNDING


@UNCHECKED
def test_padded_rows_equal_those_of_sdpa_when_every_key_is_kept():
    model, ids = build(), tokens(2)
    for mask in (LEFT, RIGHT, HOLES):
        with options(theta=math.inf, **SIZES):
            found = logits(model, ids, "anchor_attention", attention_mask=mask)
        expected = logits(model, ids, "sdpa", attention_mask=mask)
        assert far(found[mask.bool()], expected[mask.bool()]) <= ROUNDING


@UNCHECKED
def test_what_stands_under_padding_reaches_no_token():
    model, ids = build(), tokens(2)
    with options(theta=THETA, **SIZES):
        for mask in (LEFT, RIGHT, HOLES):
            given = {"attention_mask": mask, "position_ids": positions(mask)}
            other = torch.where(mask.bool(), ids, (ids + 7) % 60 + 3)
            found, same = logits(model, ids, **given), logits(model, other, **given)
            assert torch.equal(found[mask.bool()], same[mask.bool()])


@UNCHECKED
@pytest.mark.parametrize("theta", [THETA, math.inf])
@pytest.mark.parametrize("how", ["positions", "bounds", "both"])
def test_packed_texts_equal_each_text_alone(how, theta):
    model, ids = build(), tokens()
    given = {"position_ids": RESTARTING}
    if how != "bounds":
        given["use_cache"] = False
    if how != "positions":
        given |= {"cu_seq_lens_q": BOUNDS, "cu_seq_lens_k": BOUNDS}
        given |= {"max_length_q": 45, "max_length_k": 45}
    with options(theta=theta, **SIZES):
        found = logits(model, ids, **given)[0]
        for start, end in pairwise(BOUNDS.tolist()):
            alone = logits(model, ids[:, start:end])[0]
            assert far(found[start:end], alone) <= ROUNDING


def test_packing_that_the_mask_does_not_know_of_is_refused():
    model, ids = build(), tokens()
    with options(theta=THETA, **SIZES):
        for more in ({}, {"attention_mask": torch.ones(1, N), "use_cache": False}):
            with pytest.raises(
                ValueError, match="position_ids must not begin again inside a text"
            ):
                logits(model, ids, position_ids=RESTARTING, **more)
        other = BOUNDS + torch.tensor([0, 1, 1, 0, 0], dtype=torch.int32)
        with pytest.raises(ValueError, match="must bound the texts of the attention mask"):
            logits(model, ids, position_ids=RESTARTING, use_cache=False, cu_seq_lens_q=other)
        with pytest.raises(ValueError, match="cu_seq_lens_k must equal cu_seq_lens_q"):
            logits(model, ids, cu_seq_lens_q=BOUNDS, cu_seq_lens_k=other)
        with pytest.raises(ValueError, match="cu_seq_lens_q needs a batch of 1, got 2 rows"):
            logits(model, tokens(2), cu_seq_lens_q=BOUNDS, cu_seq_lens_k=BOUNDS)
        with pytest.raises(ValueError, match="must rise from 0 to the number of tokens 100"):
            logits(model, ids, cu_seq_lens_q=BOUNDS[:-1], cu_seq_lens_k=BOUNDS[:-1])


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(
    "padding",
    [LEFT[1:], RIGHT[1:], HOLES[:1], HOLES[:1] * 0],
    ids=["left", "right", "holes", "all"],
)
def test_bounds_beside_padding_are_refused(family, padding):
    """Padding within the bounds would be read as text."""
    model, ids = build(family), tokens()
    given = {"cu_seq_lens_q": BOUNDS, "cu_seq_lens_k": BOUNDS, "use_cache": False}
    with options(theta=math.inf, **SIZES):
        # In a layer with a window the mask is a matrix, which tells no padding.
        said = (
            "must come without padding" if family == "llama" else "without padding|see each other"
        )
        with pytest.raises(ValueError, match=rf"cu_seq_lens_q .*{said}"):
            logits(model, ids, attention_mask=padding, position_ids=RESTARTING, **given)
        if family == "llama":  # a mask of ones hides nothing
            ones = {"attention_mask": torch.ones(1, N, dtype=torch.long)}
            found = logits(model, ids, position_ids=RESTARTING, **ones, **given)[0]
            for start, end in pairwise(BOUNDS.tolist()):
                assert far(found[start:end], logits(model, ids[:, start:end])[0]) <= ROUNDING


def test_bounds_hold_in_layers_with_a_window_too_or_are_refused():
    model, ids = build("qwen2_sliding"), tokens()
    given = {"position_ids": RESTARTING, "cu_seq_lens_q": BOUNDS, "cu_seq_lens_k": BOUNDS}
    with options(theta=THETA, **SIZES):
        found = logits(model, ids, use_cache=False, **given)[0, 46:81]
        assert far(found, logits(model, ids[:, 46:81])[0]) <= ROUNDING
        with pytest.raises(ValueError, match="a mask by which they see each other"):
            logits(model, ids, **given)


def run_in_chunks(model, ids, ends, kind, mask=None):
    cache, parts, start = cache_of(model, kind, N + 30), [], 0
    for end in ends:
        given = {} if mask is None else {"attention_mask": mask[:, :end]}
        if mask is not None:
            given["position_ids"] = positions(mask)[:, start:end]
        parts.append(logits(model, ids[:, start:end], past_key_values=cache, **given))
        start = end
    return torch.cat(parts, 1)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_chunks_on_group_boundaries_equal_one_call(family, kind):
    model, ids = build(family), tokens(2)
    with options(theta=THETA, **SIZES), record() as stats:
        found = run_in_chunks(model, ids, (32, 96, N), kind)
        expected = logits(model, ids)
    assert far(found[:, :96], expected[:, :96]) <= ROUNDING
    assert "anchor" in {call.ran for call in stats.calls if call.queries < call.keys}


@UNCHECKED
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize(
    "mask", [None, LEFT, RIGHT, HOLES], ids=["full", "left", "right", "holes"]
)
def test_chunks_anywhere_equal_one_call_when_every_key_is_kept(mask, kind):
    model, ids = build(), tokens(2)
    real = slice(None) if mask is None else mask.bool()
    with options(theta=math.inf, **SIZES):
        found = run_in_chunks(model, ids, (25, 38, 50, 85, 86, N), kind, mask)
        given = {} if mask is None else {"attention_mask": mask, "position_ids": positions(mask)}
        assert far(found[real], logits(model, ids, **given)[real]) <= ROUNDING
        expected = logits(model, ids, "sdpa", **given)
    assert far(found[real], expected[real]) <= ROUNDING


def test_a_chunk_off_the_group_boundaries_is_the_methods_own_chunk():
    """Blocks at hand choose: what one call for the chunk's q against all k gives."""
    from anchor_models import capture_qkv
    from anchor_ref import AnchorConfig, anchor_attention

    model, ids = build(num_hidden_layers=1), tokens()
    seen = []
    layer = model.model.layers[0].self_attn.o_proj
    with options(theta=THETA, **SIZES):
        taken = capture_qkv(model, ids, dtype=None)[0]
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        run_in_chunks(model, ids, (45, 85, N), "dynamic")
    config = AnchorConfig(theta=THETA, **SIZES)
    q, k, v = taken.q[:, :, 45:85], taken.k[:, :, :85], taken.v[:, :, :85]
    expected = anchor_attention(q, k, v, config, taken.scaling)
    assert far(seen[1], expected.transpose(1, 2).flatten(2)) <= 1e-12  # nothing is float32 here
    dense = anchor_attention(q, k, v, AnchorConfig(theta=math.inf, **SIZES), taken.scaling)
    assert far(seen[1], dense.transpose(1, 2).flatten(2)) > 1e-3


def custom(kind):
    lower = torch.ones(N, N, dtype=torch.bool).tril()
    if kind == "prefix":
        lower[:, :8] = True
    lower = lower[None, None]
    if kind == "float":
        return torch.zeros(1, 1, N, N).double().masked_fill(~lower, -torch.inf)
    return lower


@pytest.mark.parametrize("kind", ["causal", "prefix", "float"])
def test_a_matrix_of_ones_own_is_refused_where_keys_would_be_dropped(kind):
    model, ids, mask = build(), tokens(), custom(kind)
    with options(theta=math.inf, **SIZES):
        with pytest.raises(
            ValueError, match=r"attention_mask must be causal .* \(1, 1, 100, 100\)"
        ):
            logits(model, ids, attention_mask=mask)
        short, small = ids[:, :30], mask[..., :30, :30]
        found = logits(model, short, attention_mask=small)
        assert torch.equal(found, logits(model, short, "sdpa", attention_mask=small))


def test_segments_that_a_model_has_changed_are_refused():
    model, ids = build(), tokens(2)
    layer = model.model.layers[0].self_attn

    def cast(_, args, kwargs):
        return args, kwargs | {"attention_mask": kwargs["attention_mask"].double()}

    layer.register_forward_pre_hook(cast, with_kwargs=True)
    for size in (20, N):
        with pytest.raises(ValueError, match="a LlamaConfig that computes with it, unless"):
            logits(model, ids[:, :size], attention_mask=HOLES[:, :size])


@pytest.mark.parametrize(
    "compute",
    [
        lambda mask: mask + torch.zeros(1, 4, N, N),  # torch: sizes differ
        lambda mask: torch.zeros(1, 4, N, N).masked_fill(mask == 0, -1.0),
        lambda mask: mask[:, :, :, :5, None, :7],  # torch: too many indices
        lambda mask: mask[..., 3],
        lambda mask: torch.cat([mask, mask], 2),
        lambda mask: mask.float(),
    ],
)
def test_segments_refuse_to_be_computed_with_in_the_models_name(compute):
    segments = Segments.of(torch.zeros(1, 1, 2, N, dtype=torch.int32), "DogeConfig")
    assert is_segments(segments[..., :40].clone())
    with pytest.raises(ValueError, match="got one with a DogeConfig that computes with it"):
        compute(segments)


def test_a_batch_of_nothing_but_padding_gives_numbers():
    model, ids = build(), tokens(2)
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1] = 0
    with options(theta=THETA, **SIZES), record() as stats:
        found = logits(model, ids, attention_mask=mask)
        assert far(found[0], logits(model, ids[:1])[0]) <= ROUNDING
        assert found.isfinite().all()
        assert logits(model, ids, attention_mask=mask * 0).isfinite().all()
    assert stats.layers[0].calls == 2  # where there was nothing to attend to, nothing is told

"""A plan is taken only when every list holds candidates of its group, ascending, each once."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchor_ref import AnchorConfig, StripePlan, attend_stripes, compute_anchor
from anchor_ref.inputs import check_plan
from anchor_ref.measure import density, executed_density, recall
from anchor_ref.regions import groups

CONFIG = AnchorConfig(block_size=4, step=2, init_blocks=1)
N = 40  # groups of 8 queries; the candidates of group g are keys 4, ..., 8g - 1
CANDIDATES = [group.candidates for group in groups(CONFIG, N, N)]


def random_lists(seed, batch=2, heads=3):
    """Lists of candidates, ascending, of random length, for each (batch, head, group)."""
    random = torch.Generator().manual_seed(seed)
    lists = []
    for _ in range(batch * heads):
        for candidates in CANDIDATES:
            keys = torch.tensor(candidates, dtype=torch.int64)
            lists.append(keys[torch.rand(len(keys), generator=random) < 0.5])
    return lists


def callers(stripes):
    """Everything that takes a plan, as calls without arguments."""
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(*stripes.counts.shape[:2], N, 8, generator=random) for _ in range(2))
    state = compute_anchor(q, k, k, CONFIG)
    return {
        "attend_stripes": lambda: attend_stripes(q, k, k, state, stripes, CONFIG),
        "recall": lambda: recall(q, k, stripes, CONFIG),
        "density": lambda: density(stripes, CONFIG, N, N),
        "executed_density": lambda: executed_density(stripes, CONFIG, N, N),
    }


@given(st.integers(0, 2**31))
def test_sound_plans_pass(seed):
    check_plan(StripePlan.from_lists(random_lists(seed), (2, 3, 5)), CANDIDATES)


FAULTS = {
    "twice": lambda keys, candidates: torch.cat([keys, keys[-1:]]),
    "descending": lambda keys, candidates: keys.flip(0),
    "in the initial region": lambda keys, candidates: torch.cat([keys[:1] * 0 + 3, keys]),
    "in the window": lambda keys, candidates: torch.cat([keys, keys[:1] * 0 + candidates.stop]),
    "negative": lambda keys, candidates: torch.cat([keys[:1] * 0 - 1, keys]),
}


@given(
    st.integers(0, 2**31), st.integers(0, 1), st.integers(0, 2), st.integers(1, 4),
    st.sampled_from(sorted(FAULTS)),
)  # fmt: skip
def test_a_key_out_of_place_is_refused_by_batch_head_group_and_key(seed, b, h, g, fault):
    lists = random_lists(seed)
    at = (b * 3 + h) * 5 + g
    sound = torch.tensor([CANDIDATES[g].start, CANDIDATES[g].stop - 1])
    lists[at] = FAULTS[fault](sound, CANDIDATES[g])
    plan = StripePlan.from_lists(lists, (2, 3, 5))
    where = f"stripes of batch {b}, head {h}, group {g} must be candidates"
    with pytest.raises(ValueError, match=where) as refused:
        check_plan(plan, CANDIDATES)
    key, position = map(
        int, re.findall(r"got key (-?\d+) at indices\[(\d+)\]", str(refused.value))[0]
    )
    assert plan.indices[position] == key
    start = int(plan.offsets[b, h, g])
    assert start <= position < start + len(lists[at])


@pytest.mark.parametrize("caller", ["attend_stripes", "recall", "density", "executed_density"])
def test_every_caller_refuses_a_key_that_looks_ahead(caller):
    lists = random_lists(0, 1, 1)
    callers(StripePlan.from_lists(lists, (1, 1, 5)))[caller]()
    lists[2] = torch.tensor([20])
    with pytest.raises(ValueError, match=r"batch 0, head 0, group 2 .* got key 20"):
        callers(StripePlan.from_lists(lists, (1, 1, 5)))[caller]()


def test_a_plan_needs_one_list_for_each_batch_head_and_group():
    with pytest.raises(ValueError, match="lists must be B·Hq·G = 30 lists, got 29"):
        StripePlan.from_lists(random_lists(0)[1:], (2, 3, 5))


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"counts": lambda x: x.long()}, TypeError, "stripes.counts must be int32"),
        ({"offsets": lambda x: x.int()}, TypeError, "stripes.offsets must be int64"),
        ({"indices": lambda x: x.long()}, TypeError, "stripes.indices must be int32"),
        ({"counts": lambda x: x[:, :, 1:]}, ValueError, "one list for each"),
        ({"counts": lambda x: x[0]}, ValueError, "one list for each"),
        ({"offsets": lambda x: x[0]}, ValueError, "stripes.offsets must have shape"),
        ({"offsets": lambda x: x + 1}, ValueError, "group 0 must have a count .* offset 1"),
        ({"counts": lambda x: -x}, ValueError, "group 1 must have a count .* got count -"),
        ({"indices": lambda x: x[1:]}, ValueError, "stripes.indices must have shape"),
        ({"indices": lambda x: x.to("meta")}, ValueError, "stripes.indices must be on device"),
        ({"counts": lambda x: x.tolist()}, TypeError, "stripes.counts must be of type Tensor"),
    ],
)
def test_a_malformed_plan_is_refused_by_field(change, error, words):
    sound = vars(StripePlan.from_lists(random_lists(0), (2, 3, 5)))
    plan = StripePlan(**{name: change.get(name, lambda x: x)(x) for name, x in sound.items()})
    with pytest.raises(error, match=words):
        check_plan(plan, CANDIDATES)
    with pytest.raises(TypeError, match="stripes must be of type StripePlan, got dict"):
        check_plan(sound, CANDIDATES)


def test_a_plan_of_other_heads_or_another_batch_is_refused():
    plan = StripePlan.from_lists(random_lists(0), (2, 3, 5))
    for shape in ((2, 4, N, 8), (1, 3, N, 8)):
        with pytest.raises(ValueError, match="one list for each"):
            check_plan(plan, CANDIDATES, torch.empty(shape))


@given(st.integers(0, 2**31))
def test_a_plan_of_candidates_lists_them_and_tells_them_again(seed):
    random = torch.Generator().manual_seed(seed)
    kept = [torch.rand(2, 3, len(c), generator=random) < 0.3 for c in CANDIDATES]
    plan = StripePlan.from_candidates(kept, CANDIDATES)
    check_plan(plan, CANDIDATES)
    mask = plan.to_mask(N)
    for g, candidates in enumerate(CANDIDATES):
        assert torch.equal(mask[:, :, g, candidates.start : candidates.stop], kept[g])
        assert torch.equal(plan.kept(g, candidates), kept[g])
    assert mask.sum() == sum(part.sum() for part in kept)

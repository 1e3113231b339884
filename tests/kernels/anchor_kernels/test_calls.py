"""What is kept from call to call, and CUDA graphs of calls."""

import math
import threading
from dataclasses import replace

import pytest
import torch

from anchor_kernels import anchor_attention, calls
from anchor_kernels.calls import KEPT, Call, call_like
from anchor_kernels.launch import SelectLaunch
from anchor_kernels.prepared import Prepared
from anchor_ref import AnchorConfig
from tests.kernels.anchor_kernels.test_kernels import DEVICE, random_case

CONFIG = AnchorConfig(16, 2, theta=2.0, tail=20)
# On a GPU the kernels' own dtype; the interpreter knows no bfloat16.
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float16


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(calls, "_calls", {})


def inputs(n=100, seed=0, heads=(1, 2, 2), dim=16):
    case = random_case(n, n, heads, dim, CONFIG, dtype=DTYPE, seed=seed)
    return case.q, case.k, case.v


def changed(x: torch.Tensor, **how) -> torch.Tensor:
    """The same values with other strides, or at an address that is no multiple of 16."""
    if "strides" in how:
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    room = x.new_empty(x.numel() + 1)
    return room[1:].view(x.shape).copy_(x)


def test_a_call_is_kept_for_others_of_its_kind_and_for_no_other():
    q, k, v = inputs()
    kept = call_like(q, k, v, CONFIG, None, None)
    others = inputs(seed=1)
    assert call_like(*others, CONFIG, None, None) is kept
    bounds = torch.tensor([0, 40, 100])
    different = [
        (q, k, v, replace(CONFIG, theta=1.0), None, None),
        (q, k, v, replace(CONFIG, tail=0), None, None),
        (q, k, v, CONFIG, 0.5, None),
        (q, k, v, CONFIG, 0.7, None),
        (q, k, v, CONFIG, None, bounds),
        (q, k, v, CONFIG, None, torch.tensor([0, 50, 100])),
        (q[:, :, 50:], k, v, CONFIG, None, None),
        (q[:, :, 50:], k[:, :, :80], v[:, :, :80], CONFIG, None, None),
        (changed(q, strides=True), k, v, CONFIG, None, None),
        (q, changed(k, strides=True), v, CONFIG, None, None),
        (q, k, changed(v, strides=True), CONFIG, None, None),
        (changed(q), k, v, CONFIG, None, None),
        (q, changed(k), v, CONFIG, None, None),
        (q, k, changed(v), CONFIG, None, None),
        (q.float(), k.float(), v.float(), CONFIG, None, None),
    ]
    found = [call_like(*arguments) for arguments in different]
    assert len({id(call) for call in [kept, *found]}) == 1 + len(different)


def test_kinds_that_alternate_give_what_each_gives_alone():
    q, k, v = inputs(heads=(1, 1, 1))
    kinds = [
        (CONFIG, None, None),
        (replace(CONFIG, theta=-math.inf), None, None),
        (CONFIG, None, torch.tensor([0, 64, 100])),
        (CONFIG, 0.7, None),
    ]
    alone = []
    for kind in kinds:
        calls._calls.clear()
        alone.append(anchor_attention(q, k, v, *kind))
    assert len({x.float().sum().item() for x in alone}) == len(kinds)
    for _ in range(2):
        for kind, expected in zip(kinds, alone, strict=True):
            assert torch.equal(anchor_attention(q, k, v, *kind), expected)


def test_bounds_that_are_written_anew_are_read_anew():
    q, k, v = inputs(heads=(1, 1, 1))
    bounds = torch.tensor([0, 40, 100])
    anchor_attention(q, k, v, CONFIG, None, bounds)
    bounds[1] = 60
    found = anchor_attention(q, k, v, CONFIG, None, bounds)
    calls._calls.clear()
    assert torch.equal(found, anchor_attention(q, k, v, CONFIG, None, torch.tensor([0, 60, 100])))


def test_what_is_refused_is_refused_after_a_call_like_it_too():
    q, k, v = inputs(20)
    anchor_attention(q, k, v, CONFIG, 1.0, torch.tensor([0, 20]))
    anchor_attention(q, k, v, CONFIG, 1.0)
    bad = [
        ("scale", (q, k, v, CONFIG, True)),
        ("q must not require", (q.clone().requires_grad_(), k, v, CONFIG, 1.0)),
        ("k must", (q, k.float(), v, CONFIG, 1.0)),
        ("v must", (q, k, v.float(), CONFIG, 1.0)),
        ("v must", (q, k, v[:, :, :10], CONFIG, 1.0)),
        ("k must not require", (q, k.clone().requires_grad_(), v, CONFIG, 1.0)),
        ("v must not require", (q, k, v.clone().requires_grad_(), CONFIG, 1.0)),
        ("cu_seqlens", (q, k, v, CONFIG, 1.0, torch.tensor([0.0, 20.0]))),
        ("cu_seqlens", (q, k, v, CONFIG, 1.0, torch.tensor([[0, 20]]))),
        ("cu_seqlens", (q, k, v, CONFIG, 1.0, [0, 20])),
        ("config", (q, k, v, {"theta": 1.0}, 1.0)),
        ("v", (q, k, None, CONFIG, 1.0)),
    ]
    for named, arguments in bad:
        with pytest.raises((TypeError, ValueError), match=named):
            anchor_attention(*arguments)


def test_so_many_kinds_are_kept_and_no_more():
    q, k, v = (x[:, :, :1] for x in inputs())
    kinds = [AnchorConfig(theta=float(theta)) for theta in range(KEPT + 5)]
    found = [call_like(q, k, v, kind, None, None) for kind in kinds]
    assert len(calls._calls) == KEPT
    assert call_like(q, k, v, kinds[-1], None, None) is found[-1]
    assert call_like(q, k, v, kinds[0], None, None) is not found[0]


def test_places_in_a_buffer_do_not_overlap_and_begin_on_boundaries():
    q, k, v = inputs()
    places = sorted(Call(q, k, v, CONFIG, 0.25, None).places.values())
    assert all(place.start % 256 == 0 for place in places)
    ends = [place.end for place in places]
    assert all(a <= b.start for a, b in zip(ends, places[1:], strict=False))
    buffer = torch.zeros(max(ends), dtype=torch.uint8)
    for place in places:
        part = place.of(buffer)
        assert (part.shape, part.dtype) == (place.shape, place.dtype)
        assert part.nbytes == place.nbytes


@pytest.mark.parametrize("theta", [2.0, math.inf])
def test_without_room_for_every_candidate_the_output_has_the_same_bits(monkeypatch, theta):
    """Heads of two entries of a batch: lists with a place each, and lists in a row."""
    settings = replace(CONFIG, theta=theta), None, None
    tensors = inputs(70, heads=(2, 2, 1))
    call = call_like(*tensors, *settings)
    out, _ = call(*tensors)
    assert call.capturable
    assert call.places["indices"].nbytes == 4 * call.candidates
    calls._calls.clear()
    monkeypatch.setattr(calls, "ROOM", call.candidates)
    assert call_like(*tensors, *settings).capturable
    calls._calls.clear()
    monkeypatch.setattr(calls, "ROOM", call.candidates - 1)
    without = call_like(*tensors, *settings)
    assert not without.capturable
    assert without.places["indices"].nbytes == 0
    assert torch.equal(without(*tensors)[0], out)


def test_candidates_cut_into_several_chunks_give_the_same_bits(monkeypatch):
    """Only lists of more than 4096 candidates have several, as calls are shipped."""
    tensors = inputs(120, heads=(2, 2, 1))
    out, trace = call_like(*tensors, CONFIG, None, None)(*tensors, return_trace=True)
    calls._calls.clear()
    small = SelectLaunch(rows=16, block_n=32, chunk=64, num_warps=4, num_stages=1)
    monkeypatch.setattr(calls, "select_launch", lambda q, asked: small)
    cut = call_like(*tensors, CONFIG, None, None)
    assert torch.equal(cut(*tensors)[0], out)
    again, other = cut(*tensors, return_trace=True)
    assert torch.equal(again, out)
    assert trace.stripes.counts.sum() > 0
    for name, value in vars(trace.stripes).items():
        assert torch.equal(getattr(other.stripes, name), value), name


def test_a_trace_does_not_keep_the_buffer_it_was_found_in():
    q, k, v = inputs()
    _, trace = anchor_attention(q, k, v, CONFIG, return_trace=True)
    for tensor in (trace.row_anchor, *vars(trace.stripes).values()):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_every_table_that_launches_read_outlives_what_is_queued(monkeypatch):
    """What is not held could be given up, and filled anew, while a stream still reads it."""
    seen = []
    launched = Prepared.__call__

    def noted(self, *tensors, stream=None):
        seen[-1] += tensors
        launched(self, *tensors, stream=stream)

    monkeypatch.setattr(Prepared, "__call__", noted)
    for config, bounds in ((CONFIG, None), (replace(CONFIG, block_size=8), (0, 40, 100))):
        bounds = None if bounds is None else torch.tensor(bounds)
        call = call_like(*inputs(heads=(1, 1, 1)), config, None, bounds)
        for seed in range(2):
            seen.append([])
            call(*inputs(seed=seed, heads=(1, 1, 1)))
        # What both read are tables: all else is of one call.
        tables = {id(x) for x in seen[-1]} & {id(x) for x in seen[-2]}
        assert len(tables) > 5
        assert tables <= {id(x) for x in call._held()}


class PretendedKernel:
    """Compiles at the first launch, and notes every one."""

    arg_names = ("x", "y", "size", "TILE", "FLAG")

    def __init__(self, compiles=True):
        self.launches, self.compiles = [], compiles

    def __getitem__(self, grid):
        def first(*args, **kwargs):
            self.launches.append(("first", grid, args, kwargs))
            return self if self.compiles else None

        def later(*args, stream):
            self.launches.append(("later", grid, args, stream))

        return later if self.launches and self.compiles else first


def test_later_launches_get_the_arguments_in_the_kernels_order():
    kernel = PretendedKernel()
    run = Prepared(kernel, (7,), (40,), {"FLAG": True, "TILE": 32}, {"num_warps": 4})
    run("a", "b")
    run(1, 2, stream=9)
    first, later = kernel.launches
    assert first == (
        "first",
        (7, 1, 1),
        ("a", "b", 40),
        {"FLAG": True, "TILE": 32, "num_warps": 4},
    )
    assert later == ("later", (7, 1, 1), (1, 2, 40, 32, True), 9)


def test_an_interpreted_kernel_is_launched_the_same_way_each_time():
    kernel = PretendedKernel(compiles=False)
    run = Prepared(kernel, (7, 2), (40,), {"FLAG": True, "TILE": 32}, {})
    run("a", "b")
    run("a", "b")
    assert kernel.launches[0] == kernel.launches[1]
    assert kernel.launches[0][1] == (7, 2, 1)


# From here on on a GPU: the way past Triton's launcher, and graphs.
GPU_CONFIG = AnchorConfig(theta=2.5)
KINDS = {
    "transformers": (6_000, (1, 4, 2), 128, GPU_CONFIG, None),
    "tail": (6_000, (1, 4, 2), 128, replace(GPU_CONFIG, tail=512), None),
    "long tail": (12_000, (1, 2, 1), 128, replace(GPU_CONFIG, tail=512), None),
    "short tail": (3_000, (2, 3, 1), 64, replace(GPU_CONFIG, tail=100), None),
    "blocks of 64": (5_000, (1, 4, 1), 96, replace(GPU_CONFIG, block_size=64, tail=9), None),
    "packed": (6_000, (1, 2, 1), 128, replace(GPU_CONFIG, tail=50), (0, 1, 2_500, 6_000)),
    "rows asked": (
        *(6_000, (1, 4, 2), 128),
        replace(GPU_CONFIG, outliers=4, outlier_theta=0.0, outlier_choice="even"),
        None,
    ),
}


def drawn(kind: str, seed: int):
    n, heads, dim, config, bounds = KINDS[kind]
    case = random_case(n, n, heads, dim, config, dtype=DTYPE, seed=seed)
    bounds = None if bounds is None else torch.tensor(bounds)
    return [case.q, case.k, case.v], (config, None, bounds)


def captured(tensors, settings):
    """A graph of one call after a run like it, and where its output will stand."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        anchor_attention(*tensors, *settings)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = anchor_attention(*tensors, *settings)
    return graph, out


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_addresses_serve_as_well_as_tensors(kind):
    for seed in range(3):  # the first launches compile, the others take the short way
        tensors, settings = drawn(kind, seed)
        found = anchor_attention(*tensors, *settings)
        traced, _ = anchor_attention(*tensors, *settings, return_trace=True)
        kept = dict(calls._calls)
        calls._calls.clear()
        assert torch.equal(found, anchor_attention(*tensors, *settings))
        assert torch.equal(found, traced)
        calls._calls |= kept


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_call_replays_with_new_values_in_place(kind):
    tensors, settings = drawn(kind, 0)
    graph, out = captured(tensors, settings)
    for seed in (1, 2):
        new, _ = drawn(kind, seed)
        for x, y in zip(tensors, new, strict=True):
            x.copy_(y)
        out.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, anchor_attention(*new, *settings))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # the second shall be
def test_thresholds_by_head_are_captured_too_and_outlive_those_that_are_kept():
    tensors, (config, _, _) = drawn("tail", 0)
    by_head = {"theta_by_head": [2.5, -math.inf, 1.0, 3.0] * 2}
    expected = anchor_attention(*tensors, config, **by_head)
    assert not torch.equal(expected, anchor_attention(*tensors, config))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = anchor_attention(*tensors, config, **by_head)
    calls._calls.clear()
    calls._thetas.clear()
    junk = [torch.full((2**10,), -1.0, device="cuda") for _ in range(64)]
    out.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="must have run once"), torch.cuda.graph(graph):
        anchor_attention(*tensors, config, theta_by_head=[1.0] * 8)
    torch.cuda.synchronize()
    del junk


@pytest.mark.gpu
def test_a_graph_outlives_the_kinds_that_are_kept():
    tensors, settings = drawn("tail", 0)
    graph, out = captured(tensors, settings)
    expected = anchor_attention(*tensors, *settings)
    calls._calls.clear()
    torch.cuda.empty_cache()
    junk = [torch.full((2**18,), -1, dtype=torch.int32, device="cuda") for _ in range(64)]
    out.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    del junk


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")  # it shall be
def test_what_no_graph_can_hold_is_refused_before_it_is_launched(monkeypatch):
    tensors, (config, scale, bounds) = drawn("packed", 0)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="must have run once"), torch.cuda.graph(graph):
        anchor_attention(*tensors, config, scale, bounds)
    on_device = bounds.cuda()
    anchor_attention(*tensors, config, scale, on_device)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="must be on the CPU"), torch.cuda.graph(graph):
        anchor_attention(*tensors, config, scale, on_device)
    anchor_attention(*tensors, config)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="must return no trace"), torch.cuda.graph(graph):
        anchor_attention(*tensors, config, return_trace=True)
    calls._calls.clear()
    monkeypatch.setattr(calls, "ROOM", 10)
    anchor_attention(*tensors, config)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="at most 10 candidates"), torch.cuda.graph(graph):
        anchor_attention(*tensors, config)
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_streams_and_threads_do_not_get_into_each_others_way():
    wrong = []

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for again in range(8):
                tensors, settings = drawn("tail", seed + again)
                found = anchor_attention(*tensors, *settings)
                twice = anchor_attention(*tensors, *settings)
                torch.cuda.current_stream().synchronize()
                if not torch.equal(found, twice):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

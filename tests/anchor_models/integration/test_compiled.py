"""torch.compile of a whole model: one graph, and in it what the uncompiled model does."""

import math

import pytest
import torch
import transformers
from torch._dynamo.utils import counters

from anchor_models.integration import compiled
from anchor_models.transformers import options, record
from tests.anchor_models.integration.tiny import (
    COMMON,
    ROUNDING,
    SIZES,
    THETA,
    N,
    build,
    far,
    logits,
    tokens,
)

# As a user calls it: the compiler need not trace through the checks of annotations.
pytestmark = pytest.mark.usefixtures("unchecked_annotations")

ONES = torch.ones(2, N, dtype=torch.long)
LEFT = (torch.arange(N) >= torch.tensor([[0], [35]])).long()
RIGHT = LEFT.flip(1)
RESTARTING = torch.cat([torch.arange(n) for n in (45, 1, 35, 19)]).expand(2, N)


class Compiled:
    """A compiled model, and the graphs that the compiler made of it."""

    def __init__(self, model, fullgraph=True, **how):
        torch.compiler.reset()
        counters.clear()
        self.graphs = []
        self.model = torch.compile(model, backend=self._keep, fullgraph=fullgraph, **how)

    def _keep(self, graph, _):
        self.graphs.append(graph)
        return graph

    def __call__(self, ids, **given):
        return logits(self.model, ids, **given)


@pytest.fixture
def llama():
    return build()


def run_both(model, ids, **given):
    """What the model says, uncompiled and compiled, and the compiler."""
    compiler = Compiled(model)
    return logits(model, ids, **given), compiler(ids, **given), compiler


def test_twelve_layers_are_one_graph():
    """Not one for each of the first eight, and the rest uncompiled."""
    model, ids = build(num_hidden_layers=12), tokens(2)
    compiler = Compiled(model, fullgraph=False)
    with options(theta=THETA, **SIZES), record() as stats:
        found = compiler(ids)
    assert [call.layer for call in stats.calls] == list(range(12))
    assert {call.ran for call in stats.calls} == {"anchor"}
    (graph,) = compiler.graphs
    prefills = [x for x in graph.graph.nodes if "anchor_models.prefill" in str(x.target)]
    assert len(prefills) == 12
    assert not counters["graph_break"]
    with options(theta=THETA, **SIZES):
        assert torch.equal(found, logits(model, ids))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"attention_mask": ONES},
        {"attention_mask": LEFT},
        {"attention_mask": RIGHT},
        {"use_cache": False},
        {"use_cache": False, "attention_mask": LEFT},
        {"use_cache": False, "position_ids": RESTARTING},
    ],
    ids=["none", "ones", "left", "right", "no cache", "no cache, left", "packed"],
)
# No window, a window in one layer, a window and chunks that hide nothing.
@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", "llama4"])
def test_padding_and_packing_break_no_graph_and_are_left_out_all_the_same(family, given):
    model, ids = build(family), tokens(2)
    with options(theta=THETA, **SIZES), record() as stats:
        plain, found, compiler = run_both(model, ids, **given)
    real = given.get("attention_mask", ONES).bool()
    assert far(found[real], plain[real]) <= ROUNDING
    assert len(compiler.graphs) == 1
    half = len(stats.calls) // 2
    for one, other in zip(stats.calls[:half], stats.calls[half:], strict=True):
        assert (one.ran, one.why, one.pairs) == (other.ran, other.why, other.pairs)
        torch.testing.assert_close(one.density, other.density, equal_nan=True)
    assert stats.calls[0].ran == "anchor"


def test_options_are_read_when_the_graph_runs(llama):
    ids, compiler, found = tokens(2), Compiled(llama), {}
    for theta in (math.inf, THETA, -math.inf):
        with options(theta=theta, **SIZES):
            found[theta] = compiler(ids)
            assert torch.equal(found[theta], logits(llama, ids))
    assert far(found[math.inf], found[THETA]) > 1e-3 < far(found[THETA], found[-math.inf])
    llama.config.anchor_attention = {"theta": -math.inf, **SIZES}
    assert torch.equal(compiler(ids), found[-math.inf])
    llama.config.anchor_attention["theta"] = math.inf  # in its place, which no identity shows
    assert torch.equal(compiler(ids), found[math.inf])


def test_a_changed_option_compiles_nothing_anew(llama):
    ids, compiler = tokens(2), Compiled(llama)
    for theta in (math.inf, THETA):
        with options(theta=theta, dense_layers=[0] if theta == THETA else [], **SIZES):
            compiler(ids)
    assert len(compiler.graphs) == 1


@pytest.mark.parametrize(
    ("family", "dynamic", "mask"),
    [("llama", None, None), ("phi3", True, LEFT)],  # the second has a window, too
    ids=["twice", "left"],
)
def test_other_lengths_and_caches_give_what_the_uncompiled_model_gives(family, dynamic, mask):
    model = build(family)
    compiler = Compiled(model, dynamic=dynamic)
    with options(theta=THETA, **SIZES):
        for n in (N, 70, 20, 2, 1, 90):
            given = {} if mask is None else {"attention_mask": mask[:, -n:]}
            plain, found = (run(tokens(2, n), **given) for run in (compiler, by(model)))
            real = ONES[:, -n:].bool() if mask is None else mask[:, -n:].bool()
            assert far(found[real], plain[real]) <= ROUNDING
        chunks = [run_in_chunks(run, model, mask) for run in (compiler, by(model))]
    assert far(*chunks) <= ROUNDING


def by(model):
    return lambda ids, **given: logits(model, ids, **given)


def run_in_chunks(run, model, mask):
    ids, parts = tokens(2), []
    cache = transformers.DynamicCache(config=model.config)
    for start, end in ((0, 32), (32, 45), (45, 99), (99, N)):
        given = {} if mask is None else {"attention_mask": mask[:, :end]}
        part = run(ids[:, start:end], past_key_values=cache, **given)
        parts.append(part if mask is None else part[mask[:, start:end].bool()])
    return torch.cat(parts, -2)


@pytest.mark.parametrize("mask", [None, LEFT], ids=["no mask", "left"])
def test_a_static_cache_is_read_as_far_as_it_is_written(llama, mask):
    given = {} if mask is None else {"attention_mask": mask}
    found = []
    with options(theta=THETA, **SIZES):
        for run in (Compiled(llama), by(llama)):
            cache = transformers.StaticCache(config=llama.config, max_cache_len=N + 30)
            found.append(run(tokens(2), past_key_values=cache, **given))
    real = ONES.bool() if mask is None else mask.bool()
    assert far(found[0][real], found[1][real]) <= ROUNDING


def test_what_is_refused_uncompiled_is_refused_by_the_same_words(llama):
    ids, compiler = tokens(2), Compiled(llama)
    with options(theta=[1.0], **SIZES), pytest.raises(ValueError, match="got none for layer 1"):
        compiler(ids)
    with pytest.raises(ValueError, match="must not begin again inside a text"):
        compiler(ids, position_ids=RESTARTING)
    small = {"num_local_experts": 2, "num_experts_per_tok": 1}
    config = transformers.GptOssConfig(**COMMON, **small, attn_implementation="eager")
    model = transformers.GptOssForCausalLM(config).eval()
    model.set_attn_implementation("anchor_attention")
    with pytest.raises(ValueError, match=r"GptOssAttention with learned .* such as 'eager'$"):
        Compiled(model)(ids)


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="in transformers 4 Bloom makes its own mask"
)
def test_a_model_with_an_attention_of_its_own_is_refused():
    config = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4)
    model = transformers.BloomForCausalLM(config).eval()
    model.config._attn_implementation = "anchor_attention"
    with pytest.raises(ValueError, match="got one with a BloomConfig"):
        Compiled(model, fullgraph=False)(tokens())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "given",
    [{}, {"attention_mask": LEFT}, {"use_cache": False, "position_ids": RESTARTING}],
    ids=["none", "left", "packed"],
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_layers_may_be_compiled_by_themselves(family, given, backend):
    """They then get a mask that was not: a tensor that refuses to be computed with."""
    model, ids = build(family), tokens(2)
    with options(theta=THETA, **SIZES), record() as stats:
        plain = logits(model, ids, **given)
        torch.compiler.reset()
        for layer in model.model.layers:
            layer.compile(backend=backend, fullgraph=True)
        found = logits(model, ids, **given)
    real = given.get("attention_mask", ONES).bool()
    assert far(found[real], plain[real]) <= ROUNDING
    assert [call.ran for call in stats.calls[2:]] == [call.ran for call in stats.calls[:2]]


@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="transformers 4 warns")
@pytest.mark.parametrize("n", [1, N])
@pytest.mark.parametrize("what", ["model", "layers", "attention"])
def test_weights_that_nobody_has_are_refused(what, n):
    model, how = build(), {"backend": "eager", "fullgraph": what == "attention" and n > 1}
    torch.compiler.reset()
    called = torch.compile(model, **how) if what == "model" else model
    for layer in model.model.layers:
        if what == "layers":
            layer.compile(**how)
        elif what == "attention":
            layer.self_attn.forward = torch.compile(layer.self_attn.forward, **how)
    ids = tokens(n=n)
    with torch.no_grad(), options(theta=THETA, **SIZES):
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"output_attentions must be False with .*'eager'"
            ):
                called(ids, output_attentions=True)
            assert called(ids).attentions is None


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's own doing
def test_gradients_flow_where_attention_is_dense_and_are_refused_elsewhere(llama):
    compiler = Compiled(llama, fullgraph=False)
    with options(theta=THETA, **SIZES):
        with pytest.raises(ValueError, match=r"run under torch\.no_grad\(\): AnchorAttention has"):
            compiler.model(tokens())
        compiler.model(tokens(n=30)).logits.sum().backward()
    assert llama.model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_autocast_is_that_of_the_uncompiled_model(llama, backend):
    """A graph of AOTAutograd runs with autocast off; q and k are float32 here, v is bfloat16."""
    model, ids = llama.float(), tokens(2)
    torch.compiler.reset()
    given = torch.compile(model, backend=backend, fullgraph=True)
    with options(theta=THETA, **SIZES), torch.autocast("cpu", torch.bfloat16):
        plain, found = (logits(x, ids, use_cache=False) for x in (model, given))
    # bfloat16 has 8 bits: a sum in another order differs in the last one or two.
    assert far(found.float(), plain.float()) <= 2**-5


def test_inductor_compiles_it(llama):
    model, ids = llama.float(), tokens(2)
    torch.compiler.reset()
    fused = torch.compile(model, fullgraph=True)
    with options(theta=math.inf, **SIZES), record() as stats:
        found = logits(fused, ids, attention_mask=LEFT)
    expected = logits(model, ids, "sdpa", attention_mask=LEFT)
    real = LEFT.bool()
    assert far(found[real], expected[real]) <= 1e-5  # float32, sums in another order
    assert [call.ran for call in stats.calls] == ["anchor"] * 2


def test_two_models_of_one_make_keep_their_own_options(llama):
    """Their layers are alike in all but who they are."""
    ids, other = tokens(2), build()
    llama.config.anchor_attention = {"theta": math.inf, **SIZES}
    other.config.anchor_attention = {"theta": -math.inf, **SIZES}
    for model in (llama, other):
        plain, found, _ = run_both(model, ids)
        assert torch.equal(plain, found)


@pytest.mark.parametrize("strided", [False, True])
def test_the_operation_is_what_it_says_of_itself(llama, strided):
    """Shapes, strides, no aliases, no writes: PyTorch's own check of an operation."""
    layer = llama.model.layers[1].self_attn
    q, k, v = (torch.randn(2, heads, N, 8) for heads in (4, 2, 2))
    if strided:
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    asked = (q, k, v, None, None, None, None, None, 0.0, None, compiled._name_of(id(layer)), "")
    for theta, n in ((THETA, SIZES), (math.inf, {"block_size": 64})):  # sparse and dense
        with options(theta=theta, **n):
            torch.library.opcheck(compiled.prefill_op, asked)
            found = compiled.prefill_op(*asked)
            assert found.shape == (2, N, 4, 8)


def test_a_graph_whose_model_is_gone_says_so():
    q = torch.randn(1, 2, 8, 4)
    asked = (q, q, q, None, None, None, None, None, 0.0, None, "nobody", "")
    with pytest.raises(RuntimeError, match="must be there when it runs, got none for 'nobody'"):
        compiled.prefill_op(*asked)

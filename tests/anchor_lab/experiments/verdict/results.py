"""Made-up results in the format of the experiments that the verdict reads; all from formulas.

At 8192 tokens dense attention takes 2 ms, at 32 768 it takes 20; the block-sparse kernel takes
.1 + .8 · share of that, ours .5 + .5 · share of the candidates kept.
"""

from anchor_lab.experiments.verdict.times import HEADS, always_kept, whole_tiles

DENSE_MS = {8192: 2.0, 32_768: 20.0}
SHAPE = dict(zip(("q_heads", "kv_heads", "head_dim"), HEADS, strict=True))


def block_time(share):
    """Of the pairs in whole tiles, over dense."""
    return 0.1 + 0.8 * share


def our_time(kept):
    """Of the candidates kept, over dense."""
    return 0.5 + 0.5 * kept


def timed(n, method, way, share, ms, part="recall", goal=None, **more):
    return {
        "part": part, "source": "layer 1", "n": n, **SHAPE, "method": method, "way": way,
        "goal": goal, "density": share, "status": "ok", "ms": {"median": ms}, **more,
    }  # fmt: skip


def of_blocks(n, method, share, goal=None, scored=0.0, factor=1.0):
    ms = factor * block_time(whole_tiles(share, n)) * DENSE_MS[n]
    part = "equal_loss" if goal is None else "recall"
    return timed(n, method, "FlashAttention-4", share, ms, part, goal, scored=scored)


def side_by_side(*more):
    rows = [{"part": "loss", "n": 8192, "method": "XAttention", "status": "ok", "loss": 0.1}]
    for n, ms in DENSE_MS.items():
        rows += [
            timed(n, "dense", "cuDNN", 1.0, ms),
            timed(n, "dense", "FlashAttention-4", 1.0, 0.9 * ms),
            {**of_blocks(n, "the same blocks", 1.0), "part": "planted"},
            of_blocks(n, "XAttention", 0.2),
            of_blocks(n, "XAttention", 0.6),
        ]
    return {"settings": {"device": "a GPU"}, "rows": [*rows, *more]}


def crossover():
    rows = []
    for n, ms in DENSE_MS.items():
        call = {"part": "calls", **SHAPE, "queries": n, "keys": n}
        rows.append({**call, "way": "dense", "kept": None, "tail": None, "ms": {"median": 2 * ms}})
        for tail, more in ((0, 0.0), (512, 0.2)):
            for kept in (0.1, 0.5):
                taken = 2 * ms * (our_time(kept) + more)
                rows.append(
                    {**call, "way": "anchor", "kept": kept, "tail": tail, "ms": {"median": taken}}
                )
    return {"settings": {"device": "a GPU"}, "rows": rows}


def density_for(kept, n=8192):
    """Pairs that ours keeps with so many of the candidates."""
    floor = always_kept(n)
    return floor + (1 - floor) * kept


def lost(method, configuration, density, loss, executed=None, scored=0.0):
    """A row of losses, the same in every run of tokens but for a little."""
    executed = density if executed is None else executed
    runs = [loss - 0.001, loss + 0.001] * 4
    return {
        "method": method, "configuration": configuration, "density": density,
        "executed_density": executed, "total_cost": executed + scored,
        "runs": {"prose": runs, "code": runs}, "classes": {}, "eighths": {}, "worst": {},
    }  # fmt: skip


def losses(*rows, tokens=8192):
    texts = {"prose": "hash", "code": "hash"}
    return {
        "settings": {"device": "a GPU", "tokens": tokens, "texts": texts},
        "rows": list(rows),
    }


def found(method, configuration, density, recall, n=8192, text="prose", scored=0.0):
    """A row of recall, of one layer and text."""
    return {
        "length": n, "text": text, "layer": 0, "method": method, "configuration": configuration,
        "recall_mean": recall, "recall_p10": recall, "recall_least": recall, "density": density,
        "executed_density": density, "identification_cost": scored,
        "total_cost": density + scored, "output_error": 0.0,
    }  # fmt: skip


def curve(method, *pairs, n=8192, text="prose"):
    """Rows of a method that needs so many pairs for recalls of .95, .98 and .99."""
    recalls = (0.9, 0.95, 0.98, 0.99)
    pairs = (pairs[0] / 2, *pairs)
    return [
        found(method, f"at {place}", x, recall, n, text)
        for place, (x, recall) in enumerate(zip(pairs, recalls, strict=True))
    ]


def rivals(*rows):
    return {"settings": {"device": "a GPU"}, "rows": list(rows)}


def asked(n, way, right, prompts=50, task="single", placement="end"):
    answers = [1] * right + [0] * (prompts - right)
    return {"length": n, "task": task, "placement": placement, "way": way, "found": answers}

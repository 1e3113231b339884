"""Inputs that columns were made for, and inputs that blocks were made for, both ways.

As many keys are heavy in both: scattered ones in the first, whole blocks of 128 in the second. A
method that keeps single keys and one that keeps blocks, the newest there is, run on both.
"""

from itertools import product

from anchor_lab.experiments.experiment import progress
from anchor_lab.experiments.side_by_side import executors
from anchor_lab.experiments.side_by_side.blocks import BLOCK, of_selection
from anchor_lab.experiments.side_by_side.ladders import OURS
from anchor_lab.experiments.side_by_side.sources import KEPT, head_columns
from anchor_lab.experiments.side_by_side.timing import timed
from anchor_lab.methods import METHODS
from anchor_models import planted_stripes
from anchor_ref.regions import causal_pairs

PART = "made_for"
TOGETHER = {"single keys": 1, "whole blocks": BLOCK}  # heavy keys side by side, by input
BY_BLOCKS = "FlashPrefillV2"
ALPHAS = (0.1, 0.6)  # of it: as its public example has it, and sparser


def measure_inputs(bench) -> None:
    """Rows of ours without a tail, of cuDNN, and of the blocks that a method chooses.

    Args:
        bench: `measure.Bench`; of its sizes the first shape and the lengths `made_for` are taken.
    """
    for source, n in progress(list(product(TOGETHER, bench.sizes.made_for))):
        _of_input(bench, source, n)


def _of_input(bench, source: str, n: int) -> None:
    shape = head_columns(bench.sizes.shapes[0])
    where = {"part": PART, "source": source, "n": n, **shape}
    ours = {**where, "method": OURS, "way": "tail 0"}
    dense = [{**where, "method": "dense", "way": way} for way in bench.dense() if way == "cuDNN"]
    chosen = [
        {**where, "method": BY_BLOCKS, "setting": alpha, "way": way}
        for alpha, way in product(ALPHAS, bench.blocks())
    ]
    left = [key for key in (ours, *dense, *chosen) if bench.is_left(key)]
    if not left:
        return
    x = planted_stripes(
        n,
        **shape,
        density=KEPT,
        together=TOGETHER[source],
        dtype=bench.dtype,
        device=bench.device,
    )
    case = bench.case(x.q, x.k, x.v, shape["head_dim"] ** -0.5)
    for key in left:
        if key["method"] == BY_BLOCKS:
            continue
        kept = 1.0
        if key is ours:
            kept = (case.always_pairs + case.stripe_pairs) / case.dense_pairs
        make = executors.ours if key is ours else executors.DENSE[key["way"]]
        bench.add(key, lambda make=make: timed(case, make(case), bench.instruments), density=kept)
    for alpha in ALPHAS:
        if of_alpha := [key for key in left if key.get("setting") == alpha]:
            selection = METHODS[BY_BLOCKS](alpha, dense_up_to=0).select(case.q, case.k, case.scale)
            blocks, scored = of_selection(selection), selection.scored / causal_pairs(n)
            for key in of_alpha:
                bench.of_blocks(case, blocks, key, density=blocks.density, scored=scored)

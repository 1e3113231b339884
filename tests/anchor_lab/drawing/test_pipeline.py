"""The timeline of the Hopper kernel obeys the kernel's barriers; drawing must not fail."""

from itertools import pairwise

import pytest
from matplotlib import pyplot as plt

from anchor_kernels import sparse_hopper
from anchor_lab.drawing import pipeline

CASES = [
    (tiles, consumers, stages, copy, exponentials)
    for tiles in (1, 2, 7)
    for consumers in (1, 3)
    for stages in (1, 2, 4)
    for copy in (0.25, 3.0)
    for exponentials in (0.5, 2.0)
]


def steps(spans, step):
    """By who and tile, of one step."""
    return {(span.who, span.tile): span for span in spans if span.step == step}


@pytest.mark.parametrize(("tiles", "consumers", "stages", "copy", "exponentials"), CASES)
def test_nobody_reads_before_a_copy_or_overwrites_before_all_have_read(
    tiles, consumers, stages, copy, exponentials
):
    spans = pipeline.data_pipeline(tiles, consumers, stages, copy, 1.0, exponentials)
    found = {step: steps(spans, step) for step in pipeline.STEPS}
    names = [f"consumer {c}" for c in range(consumers)]
    for kind, reads in (("keys", "scores"), ("values", "output")):
        assert [tile for _, tile in found[kind]] == list(range(tiles))
        assert found[reads].keys() == {(name, i) for name in names for i in range(tiles)}
        for (_, i), copied in found[kind].items():
            read = [found[reads][name, i] for name in names]
            assert all(span.start >= copied.end for span in read)
            if i + stages < tiles:
                again = found[kind]["producer", i + stages]
                assert again.start >= max(span.end for span in read)
    for name in names:
        for i in range(tiles):
            weights = found["weights"][name, i]
            assert weights.start >= found["scores"][name, i].end
            assert found["output"][name, i].start >= weights.end


@pytest.mark.parametrize(("tiles", "consumers", "stages", "copy", "exponentials"), CASES)
def test_each_unit_does_one_thing_at_a_time(tiles, consumers, stages, copy, exponentials):
    spans = pipeline.data_pipeline(tiles, consumers, stages, copy, 1.0, exponentials)
    for unit in ({"keys", "values"}, {"scores", "output"}):
        own = sorted((x.start, x.end) for x in spans if x.step in unit)
        assert all(end <= start for (_, end), (start, _) in pairwise(own))
    for c in range(consumers):
        own = sorted((x.start, x.end) for (who, _), x in steps(spans, "weights").items()
                     if who == f"consumer {c}")  # fmt: skip
        assert all(end <= start for (_, end), (start, _) in pairwise(own))
    assert 0 < pipeline.busy(spans) <= 1


def test_the_figure_draws_as_many_rows_as_the_kernel_has_groups_of_warps():
    consumers = sparse_hopper.CONSUMERS.value
    spans = pipeline.data_pipeline(3, consumers, 4, 2.0, 1.0, 2.0)
    figure, ax = plt.subplots()
    pipeline.draw_pipeline(spans, ax)
    assert len(ax.patches) == len(spans)
    assert len(ax.get_yticklabels()) == consumers + 1
    plt.close(figure)
    pipeline.show_pipeline(spans, "here")
    assert not plt.get_fignums()

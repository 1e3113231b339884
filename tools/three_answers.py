"""What README says of a real language model: when it pays, what it loses, what beats it.

Every number comes from committed results, whatever lengths, methods and texts they have by now:

three_answers  a sentence or two each
pays           results/crossover and results/lengths: whole prefills, and what the heads keep
loses          results/smollm2: answers with and without a tail
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from anchor_lab.experiments import page
from anchor_lab.experiments.answers.course import data_asked
from anchor_lab.experiments.crossover.figure import data_prefills, over_sdpa
from anchor_lab.experiments.crossover.share import data_dense
from anchor_lab.experiments.lengths.figure import data_heads
from anchor_lab.experiments.losses.measure import GOALS, TEXTS
from anchor_lab.experiments.losses.tokens import FAR, NEW
from anchor_lab.experiments.rivals.page import published
from anchor_lab.experiments.smollm2.page import answers, shown
from anchor_models.backend import TAIL
from anchor_ref import AnchorConfig
from tools.limits import kinds_asked
from tools.standing import NAMES, OURS, data_others, data_standing

CONFIG = AnchorConfig()
THETAS = (CONFIG.theta, 9.0)  # of the heads' pairs and recall
SMALL, LARGE = "smollm2", "random"  # models of the prefills; the second has an 8B model's layers
render = partial(page.render, folder=Path(__file__).parent)


# When it pays.


@dataclass(frozen=True)
class Crossing:
    """From which length on prefills are faster, by time over that with dense attention.

    Attributes:
        before: (length, ratio) where it is slower or cannot be told from dense.
        after: the same where it is faster, also in nine of ten turns; every longer one too.
    """

    before: list[tuple[int, float]]
    after: list[tuple[int, float]]

    def in_words(self, than: str = "") -> str:
        """How many times as long it takes, `than` after the first number, and where."""
        parts = []
        if self.before:
            ends = dict.fromkeys(page.spaced(n) for n, _ in (self.before[0], self.before[-1]))
            worst = max(ratio for _, ratio in self.before)
            parts.append(f"up to {worst:.2f}{than} at {' to '.join(ends)} tokens")
            than = ""
        for n, ratio in dict.fromkeys(self.after[:1] + self.after[-1:]):
            parts.append(f"{ratio:.2f}{than} at {page.spaced(n)}")
            than = ""
        return ", ".join(parts)


def data_crossing(rows: Sequence[dict], model: str) -> Crossing:
    """AnchorAttention in every layer against dense, prompts longer than a group.

    Args:
        rows: of results/crossover/crossover.json.
        model: one of the models of its prefills.

    Raises:
        ValueError: there is no such prefill.
    """
    found = {
        n: (over_sdpa(ways, "always"), ways["always"].get("over_sdpa", {}).get("p90"))
        for n, ways in data_prefills(rows).get(model, {}).items()
        if n > CONFIG.group_size and {"sdpa", "always"} <= ways.keys()
    }
    if not found:
        raise ValueError(f"model must be one that was prefilled beyond a group, got {model!r}")
    # Where ways did not take turns, the medians have to do.
    faster = {n: (ratio if p90 is None else p90) < 1 for n, (ratio, p90) in found.items()}
    after = [n for n in found if all(faster[m] for m in found if m >= n)]
    return Crossing(
        [(n, found[n][0]) for n in found if n not in after], [(n, found[n][0]) for n in after]
    )


def pays(crossover: dict, lengths: dict) -> str:
    """Whole prefills by length, with what the heads keep and attention's share.

    Args:
        crossover: of `python -m anchor_lab crossover`.
        lengths: of `python -m anchor_lab lengths`.
    """
    prefills = data_prefills(crossover["rows"])
    heads = data_heads(lengths["rows"], lengths["settings"]["thetas"])
    dense = data_dense(crossover["rows"]).get(SMALL, {})
    table = []
    for n, ways in prefills[SMALL].items():
        if n <= CONFIG.group_size or not {"sdpa", "always"} <= ways.keys():
            continue
        kept = [heads[n]["thetas"][theta] for theta in THETAS] if n in heads else []
        large = prefills.get(LARGE, {}).get(n, {})
        both = {"sdpa", "always"} <= large.keys()
        table.append(
            (
                page.spaced(n),
                f"{over_sdpa(ways, 'always'):.2f}",
                f"{over_sdpa(large, 'always'):.2f}" if both else "–",
                *(page.number(ways[way]["ms"]["median"]) for way in ("sdpa", "always")),
                f"{100 * dense[n]['share']:.0f} %" if n in dense else "–",
                " / ".join(page.percent(x["density"]).removesuffix(" %") for x in kept) or "–",
                " / ".join(page.digits(x["recall"], 3) for x in kept) or "–",
            )
        )
    took = [ways["sdpa"]["ms"]["median"] for n, ways in prefills[SMALL].items()
            if n > CONFIG.group_size and "sdpa" in ways]  # fmt: skip
    layers = {row.get("sparse_layers") for row in crossover["rows"] if row.get("model") == LARGE}
    return render(
        "pays.md.j2",
        rows=table,
        thetas=" / ".join(f"{theta:g}" for theta in THETAS),
        texts=" and ".join(next(iter(heads.values()))["texts"]) if heads else "nothing",
        layers=max(layers - {None}, default=0),
        host=any(longer < shorter for shorter, longer in pairwise(took)),
        settings=crossover["settings"],
        theta=CONFIG.theta,
        group=CONFIG.group_size,
        tail=TAIL,
    )


# What it loses.


def loses(smollm2: dict) -> str:
    """Answers found with dense attention, without a tail and with one.

    Args:
        smollm2: of `python -m anchor_lab smollm2`.
    """
    return render(
        "loses.md.j2",
        rows=[
            (page.spaced(n), count, *(shown(one, count) for one in found))
            for n, count, found in answers(smollm2["rows"])
        ],
        settings=smollm2["settings"],
        theta=CONFIG.theta,
        tail=TAIL,
    )


# All three.


def three_answers(
    crossover: dict,
    smollm2: dict,
    asked: dict,
    files: Sequence[dict],
    table: dict,
    lengths: dict,
) -> str:
    """When it pays, what it loses, what beats it: what one must know before trying it.

    Args:
        crossover, smollm2, files, table, lengths: as in `pays`, `loses` and `texts`.
        asked: of `python -m anchor_lab answers`; the length of `smollm2` and the longest are told.
    """
    rows = crossover["rows"]
    found = data_standing(files, table)
    counts = data_asked(asked["rows"])
    n, count, (dense, bare, tailed) = answers(smollm2["rows"])[-1]
    ours = {theta: found.lost[theta][OURS].mean for theta in GOALS}
    best = published(found.lost[CONFIG.theta])[0]
    return render(
        "three_answers.md.j2",
        device=crossover["settings"]["device"],
        small=data_crossing(rows, SMALL).in_words(" times as long as with dense attention"),
        large=data_crossing(rows, LARGE).in_words(),
        theta=CONFIG.theta,
        tail=TAIL,
        answers=(page.spaced(n), count, dense, bare, tailed),
        asked=[
            (page.spaced(at), x.dense, x.ours, x.prompts, len(kinds_asked(asked["rows"], at)))
            for at, x in counts.items()
            if at in (n, max(counts))
        ],
        lost=[(f"{theta:g}", page.digits(x, 3)) for theta, x in ours.items()],
        n=page.spaced(found.n),
        recall=found.recall,
        pairs=page.percent(found.pairs[OURS]) if found.pairs[OURS] == found.pairs[OURS] else None,
        ahead=[NAMES.get(name, name) for name in found.ahead],
        reach=found.reach,
        cost_place=found.cost_place,
        place=found.place(CONFIG.theta),
        of=len(published(found.lost[CONFIG.theta])),
        best=NAMES.get(best, best),
        least=page.digits(found.lost[CONFIG.theta][best].mean, 3),
        far=page.digits(found.classes[FAR], 2),
        new=page.digits(found.classes[NEW], 2),
        texts=TEXTS,
        others=[one.page for one in data_others(files, found.n, lengths)],
    )

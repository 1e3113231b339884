"""What README says of a real language model: when it pays, what it loses, what beats it.

Every number comes from committed results, whatever lengths, methods and texts they have by now:

verdict  the three answers, a sentence or two each
pays     results/crossover and results/lengths: whole prefills, and what the heads keep
loses    results/smollm2: answers with and without a tail
beats    results/rivals and results/losses, at the longest length that is complete in both
kernels  results/side_by_side: one layer's call beside kernels of dense attention
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anchor_lab.experiments import page
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.crossover.figure import data_prefills, over_sdpa
from anchor_lab.experiments.lengths.figure import data_heads, data_times
from anchor_lab.experiments.lengths.prefills import SDPA
from anchor_lab.experiments.losses import figure as losses
from anchor_lab.experiments.losses.measure import GOALS, TEXTS
from anchor_lab.experiments.losses.tokens import FAR, NEW
from anchor_lab.experiments.rivals import figure as rivals
from anchor_lab.experiments.rivals.page import kind_of
from anchor_lab.experiments.side_by_side.course import data_rivals
from anchor_lab.experiments.side_by_side.figure import data_planted, heads_of
from anchor_lab.experiments.side_by_side.measure import KEPT
from anchor_lab.experiments.smollm2.page import answers, shown
from anchor_models.backend import TAIL
from anchor_ref import AnchorConfig

CONFIG = AnchorConfig()
THETAS = (CONFIG.theta, 9.0)  # of the heads' pairs and recall
SMALL, LARGE = "smollm2", "random"  # models of the prefills; the second has an 8B model's layers
ROOM = "DifferenceOracle"  # our test on each row's own scores: what is left to gain
OURS_TIMED = (OURS, f"tail {TAIL}")
DENSE_KERNELS = ("cuDNN", "FlashAttention-2", "FlashAttention-4")
NAMES = {
    OURS: f"**{OURS}**",
    "VerticalSlash": "vertical-slash (MInference)",
    "SpargeAttention": "SpargeAttn's selection",
    "SkipSoftmax": "skip-softmax",
    "PBSAttention": "PBS-Attn",
    "FlashPrefillV2": "FlashPrefill V2",
    "Triangle": "Triangle, all layers",
    ROOM: "*oracle: our test on each row's own scores*",
}
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
    times = data_times(lengths["rows"])
    table = []
    for n, ways in prefills[SMALL].items():
        if n <= CONFIG.group_size or not {"sdpa", "always"} <= ways.keys():
            continue
        kept = [heads[n]["thetas"][theta] for theta in THETAS] if n in heads else []
        share = times.get(n, {}).get(SDPA, {}).get("share")
        large = prefills.get(LARGE, {}).get(n, {})
        both = {"sdpa", "always"} <= large.keys()
        table.append(
            (
                page.spaced(n),
                " / ".join(page.percent(x["density"]) for x in kept) or "–",
                " / ".join(page.digits(x["recall"], 3) for x in kept) or "–",
                "–" if share is None else f"{100 * share:.0f} %",
                *(f"{page.number(ways[way]['ms']['median'])} ms" for way in ("sdpa", "always")),
                f"{over_sdpa(ways, 'always'):.2f}",
                f"{over_sdpa(large, 'always'):.2f}" if both else "–",
            )
        )
    layers = {row.get("sparse_layers") for row in crossover["rows"] if row.get("model") == LARGE}
    return render(
        "pays.md.j2",
        rows=table,
        thetas=" / ".join(f"{theta:g}" for theta in THETAS),
        texts=" and ".join(next(iter(heads.values()))["texts"]) if heads else "nothing",
        layers=max(layers - {None}, default=0),
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


# What beats it.


@dataclass(frozen=True)
class Standing:
    """All published methods, and one oracle, at one length.

    Attributes:
        n: tokens.
        recall: that is to be reached.
        pairs, cost: what each method needs for it, of dense attention; NaN for those that never
            reach it. Fewest pairs first.
        lost: by θ of `GOALS`, then by method, with as many pairs as ours keeps there.
        level: by θ, these pairs.
        classes: of our tokens at the published θ, nats a token of each kind.
        eighths: of our rows there, nats a token by eighths of a group.
    """

    n: int
    recall: float
    pairs: dict[str, float]
    cost: dict[str, float]
    lost: dict[float, dict[str, losses.Lost]]
    level: dict[float, float]
    classes: dict[str, float]
    eighths: list[float]

    @property
    def ahead(self) -> list[str]:
        """Published methods that reach the recall with fewer pairs."""
        mine = self.pairs[OURS]
        return [name for name in published(self.pairs) if self.pairs[name] < mine]

    @property
    def cost_place(self) -> int:
        """Ours among published methods by total cost for the recall, 1 for the least."""
        return published(self.cost).index(OURS) + 1

    @property
    def reach(self) -> int:
        """How many published methods reach the recall."""
        return sum(self.pairs[name] == self.pairs[name] for name in published(self.pairs))

    def place(self, theta: float) -> int:
        """Ours among published methods by loss, 1 for the least."""
        return published(self.lost[theta]).index(OURS) + 1


def published(names) -> list[str]:
    """Those of them that somebody published, in their order."""
    return [name for name in names if kind_of(name) == "published"]


def data_standing(files: Sequence[dict], table: dict) -> Standing:
    """The longest length at which all published methods have both a recall's price and a loss.

    Args:
        files: of `python -m anchor_lab losses`, one of each length; of brought texts they have no
            say.
        table: of `python -m anchor_lab rivals`.

    Raises:
        ValueError: no length is complete in both.
    """
    by_length = {
        x["settings"]["tokens"]: x["rows"]
        for x in files
        if set(x["settings"]["texts"]) == {*TEXTS}
    }
    there = [n for n in rivals.data_lengths(table["rows"]) if n in by_length]
    curves = {n: rivals.data_curves(table["rows"], n) for n in there}
    whole = [n for n in there if _complete(by_length[n], by_length[min(there)])
             and {*published(curves[min(there)]["method"])} <= {*curves[n]["method"]}]  # fmt: skip
    if not whole:
        raise ValueError(
            "losses and rivals must share a length with every method and θ, got losses of "
            f"{sorted(by_length)} and rivals of {rivals.data_lengths(table['rows'])} tokens"
        )
    n = max(whole)
    rows, level = by_length[n], {}
    lost: dict[float, dict[str, losses.Lost]] = {}
    for theta in GOALS:
        level[theta] = losses.data_level(rows, "density", theta)
        found = losses.data_at(rows, "density", level[theta])
        lost[theta] = {name: one for name, one in found.items() if one is not None}
    needed = {
        budget: {name: x[0] for name, x in rivals.data_needed(curves[n], budget).items()}
        for budget in ("density", "total_cost")
    }
    kinds = losses.data_classes(rows, lost[CONFIG.theta][OURS])
    return Standing(
        n,
        rivals.RECALLS[0],
        needed["density"],
        needed["total_cost"],
        lost,
        level,
        {name: nats for name, (nats, _) in kinds.items()},
        losses.data_eighths(lost[CONFIG.theta][OURS], n),
    )


def _complete(rows: Sequence[dict], first: Sequence[dict]) -> bool:
    """Ours was read at every θ of `GOALS`, and so was every published method that `first` has."""
    read = {row["method"] for row in rows}
    return (
        all(losses.data_level(rows, "density", theta) is not None for theta in GOALS)
        and {*published(row["method"] for row in first)} <= read
    )


def data_brought(files: Sequence[dict]) -> list[tuple[str, int, int, int]]:
    """Of each text that somebody brought: name, tokens, our place by loss at θ, of how many."""
    found = []
    for one in files:
        rows, about = one["rows"], one["settings"]
        level = losses.data_level(rows, "density", CONFIG.theta)
        if set(about["texts"]) <= {*TEXTS} or level is None:
            continue
        at = losses.data_at(rows, "density", level)
        order = published(name for name, lost in at.items() if lost is not None)
        found.append(
            (", ".join(about["texts"]), about["tokens"], order.index(OURS) + 1, len(order))
        )
    return found


def beats(files: Sequence[dict], table: dict) -> str:
    """Every published method: pairs and work for a recall, and its loss with as many pairs.

    Args:
        files, table: as in `data_standing`.
    """
    found = data_standing(files, table)
    everyone = dict.fromkeys([*published(found.pairs), *published(found.lost[CONFIG.theta]), ROOM])
    return render(
        "beats.md.j2",
        rows=[
            (
                NAMES.get(name, name),
                *(_share(x.get(name)) for x in (found.pairs, found.cost)),
                *(
                    _nats(found.lost[t][name].mean) if name in found.lost[t] else "–"
                    for t in GOALS
                ),
            )
            for name in everyone
        ],
        n=page.spaced(found.n),
        recall=found.recall,
        eighths=[page.digits(x, 2) for x in (found.eighths[0], *_ends(found.eighths[1:]))],
        group=CONFIG.group_size,
        goals=[(f"{theta:g}", page.percent(found.level[theta])) for theta in GOALS],
        texts=TEXTS,
        brought=[(name, page.spaced(n), *place) for name, n, *place in data_brought(files)],
        settings=table["settings"],
    )


def _ends(numbers: Sequence[float]) -> tuple[float, float]:
    return min(numbers), max(numbers)


def _share(x: float | None) -> str:
    return "–" if x is None or x != x else page.percent(x)


def _nats(x: float) -> str:
    """Three decimals, with a true minus where any of them is left."""
    return page.digits(x, 3).replace("-0.000", "0.000").replace("-", "−")


# All three, and the kernels.


def verdict(crossover: dict, smollm2: dict, files: Sequence[dict], table: dict) -> str:
    """When it pays, what it loses, what beats it: what one must know before trying it.

    Args:
        crossover, smollm2, files, table: as in `pays`, `loses` and `beats`.
    """
    rows = crossover["rows"]
    found = data_standing(files, table)
    n, asked, (dense, bare, tailed) = answers(smollm2["rows"])[-1]
    ours = {theta: found.lost[theta][OURS].mean for theta in GOALS}
    best = published(found.lost[CONFIG.theta])[0]
    return render(
        "verdict.md.j2",
        device=crossover["settings"]["device"],
        small=data_crossing(rows, SMALL).in_words(" times as long as with dense attention"),
        large=data_crossing(rows, LARGE).in_words(),
        theta=CONFIG.theta,
        tail=TAIL,
        answers=(page.spaced(n), asked, dense, bare, tailed),
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
        brought=[(name, page.spaced(n), *place) for name, n, *place in data_brought(files)],
    )


def kernels(results: dict) -> str:
    """One layer's call beside kernels of dense attention, on planted stripes.

    Args:
        results: of `python -m anchor_lab side_by_side`.
    """
    data = data_planted(results["rows"])
    planted = [row for row in results["rows"] if row["part"] == "planted"]
    kept = {
        row["n"]: row["density"]
        for row in planted
        if (row["method"], row["way"]) == OURS_TIMED and heads_of(row) == heads_of(planted[0])
    }
    dense = {way: data.get(("dense", way), {}) for way in DENSE_KERNELS}
    rows = []
    for n, ms in data[OURS_TIMED].items():
        theirs = [times.get(n) for times in dense.values()]
        best = min((x for x in theirs if x is not None), default=None)
        cells = ("–" if x is None else f"{page.number(x)} ms" for x in (ms, *theirs))
        ratio = page.digits(best and best / ms, 1)
        rows.append((page.spaced(n), page.percent(kept[n]), *cells, ratio))
    recall = f"recall {rivals.RECALLS[0]:g}"
    *_, (place, by_method) = data_rivals(results["rows"], recall).items()
    named = sorted(by_method.items(), key=lambda x: x[1])
    return render(
        "kernels.md.j2",
        recall=recall,
        place=place,
        by_method=[(NAMES.get(name, name).strip("*"), page.number(ms)) for name, ms in named],
        rows=rows,
        dense=list(dense),
        planted=KEPT,
        heads="{} query and {} kv heads of {}".format(*heads_of(planted[0])),
        settings=results["settings"],
        run=results["runs"][planted[0]["run"]],
        tail=TAIL,
    )

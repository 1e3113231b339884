"""Where AnchorAttention stands among published methods, by recall and by loss: README's table.

From results/rivals and results/losses, at the longest length that is complete in both, whatever
methods and lengths they have by now.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anchor_lab.experiments import page
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.equal_time import figure as equal_time
from anchor_lab.experiments.equal_time.measure import ASKED
from anchor_lab.experiments.equal_time.page import data_found
from anchor_lab.experiments.equal_time.ways import ROWS_BY_HEAD
from anchor_lab.experiments.losses import figure as losses
from anchor_lab.experiments.losses.measure import FULL, GOALS, TEXTS, row_of, theta_label
from anchor_lab.experiments.losses.page import unread
from anchor_lab.experiments.rivals import figure as rivals
from anchor_lab.experiments.rivals.page import published
from anchor_ref import AnchorConfig

CONFIG = AnchorConfig()
ROOM = "DifferenceOracle"  # our test on each row's own scores: what is left to gain
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


@dataclass(frozen=True)
class Standing:
    """All published methods, and one oracle, at one length.

    Attributes:
        n: tokens.
        recall: that is to be reached.
        pairs, cost: what each method needs for it, of dense attention; NaN for those that were
            not swept so far. Fewest pairs first.
        ends: where the sweeps of these end: recall, and the pairs that it costs.
        lost: by θ of `GOALS`, then by method, with as many pairs as ours keeps there.
        level: by θ, these pairs.
        classes: of our tokens at the published θ, nats a token of each kind.
        eighths: of our rows there, nats a token by eighths of a group.
    """

    n: int
    recall: float
    pairs: dict[str, float]
    cost: dict[str, float]
    ends: dict[str, tuple[float, float]]
    lost: dict[float, dict[str, losses.Lost]]
    level: dict[float, float]
    classes: dict[str, float]
    eighths: list[float]

    @property
    def page(self) -> str:
        """The page of results that its losses are of."""
        return "losses" if self.n <= FULL.tokens else "long"

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

    @property
    def behind(self) -> list[str]:
        """Published methods that need more pairs, or keep more already where their sweep ends
        before, and lose more at every θ."""
        mine = self.pairs[OURS]
        return [
            name
            for name in published(self.pairs)
            if (self.pairs[name] > mine or self.ends.get(name, (0.0, 0.0))[1] > mine)
            and all(
                name in found and found[name].mean > found[OURS].mean
                for found in self.lost.values()
            )
        ]

    def place(self, theta: float) -> int:
        """Ours among published methods by loss, 1 for the least."""
        return published(self.lost[theta]).index(OURS) + 1


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
    ends = rivals.data_ends(curves[n])
    kinds = losses.data_classes(rows, lost[CONFIG.theta][OURS])
    return Standing(
        n,
        rivals.RECALLS[0],
        needed["density"],
        needed["total_cost"],
        {x: ends[x] for x, needs in needed["density"].items() if needs != needs},
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


@dataclass(frozen=True)
class OtherTexts:
    """What AnchorAttention loses on other texts than those of a `Standing`.

    Attributes:
        name: of their page of results.
        what: the same in words.
        tokens: N.
        pairs: share that it keeps at the published θ.
        lost: by θ of `GOALS` that was read, nats a token above dense attention's.
        place, of: by loss among published methods with as many pairs, 1 for the least.
        missing: published methods that the usual texts were read with, and these were not.
        unread: of its kinds of text, those that the model reads worse at once than in pieces.
    """

    name: str
    what: str
    tokens: int
    pairs: float
    lost: dict[float, float]
    place: int
    of: int
    missing: list[str]
    unread: list[str]

    @property
    def page(self) -> dict:
        """Its numbers as pages show them."""
        return {
            "name": self.name,
            "what": self.what,
            "tokens": page.spaced(self.tokens),
            "pairs": page.percent(self.pairs),
            "lost": [(f"{theta:g}", _nats(nats)) for theta, nats in self.lost.items()],
            "nats": _nats(self.lost[CONFIG.theta]),
            "place": self.place,
            "of": self.of,
            "missing": [NAMES.get(name, name) for name in self.missing],
            "unread": self.unread,
        }


def data_others(files: Sequence[dict], n: int, lengths: dict) -> list[OtherTexts]:
    """Of each text that somebody brought, and of the usual ones where they are longer than n.

    AnchorAttention read them at the published θ.

    Args:
        files: as in `data_standing`.
        n: tokens of a `Standing`.
        lengths: of `python -m anchor_lab lengths`, for what is read worse at once.
    """
    found = []
    usual = [one for one in files if set(one["settings"]["texts"]) == {*TEXTS}]
    everyone = published(dict.fromkeys(row["method"] for one in usual for row in one["rows"]))
    for one in files:
        rows, about = one["rows"], one["settings"]
        level = losses.data_level(rows, "density", CONFIG.theta)
        if level is None or (one in usual and about["tokens"] <= n):
            continue
        order, own = ranked(rows), {}
        for theta in GOALS:
            if losses.data_level(rows, "density", theta) is not None:
                own[theta] = losses.data_lost(row_of(rows, OURS, theta_label(theta))).mean
        name, what = ", ".join(about["texts"]), losses.in_words(about["texts"])
        missing = []
        if one in usual:
            name, what = "long", "longer texts of these kinds"
            missing = [method for method in everyone if method not in order]
        place, tokens = order.index(OURS) + 1, about["tokens"]
        worse = unread(about, lengths)
        found.append(OtherTexts(name, what, tokens, level, own, place, len(order), missing, worse))
    return found


def ranked(rows: Sequence[dict]) -> list[str]:
    """Published methods by loss, least first, with as many pairs as ours at the published θ."""
    at = losses.data_at(rows, "density", losses.data_level(rows, "density", CONFIG.theta))
    return published(name for name, lost in at.items() if lost is not None)


def beats(files: Sequence[dict], table: dict) -> str:
    """Published methods: pairs and work for a recall, and their loss with as many pairs.

    Those that need more pairs than ours, and lose more too, are named alone.

    Args:
        files, table: as in `data_standing`.
    """
    found = data_standing(files, table)
    everyone = dict.fromkeys([*published(found.pairs), *published(found.lost[CONFIG.theta]), ROOM])
    shown = [name for name in everyone if name not in found.behind]
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
            for name in shown
        ],
        ends=[
            (NAMES.get(name, name), page.digits(end, 3), page.percent(pairs))
            for name, (end, pairs) in found.ends.items()
            if name in shown
        ],
        unlooked=[NAMES.get(name, name) for name in shown if name not in found.pairs],
        behind=[NAMES.get(name, name) for name in found.behind],
        n=page.spaced(found.n),
        lost=found.page,
        recall=found.recall,
        goals=[(f"{theta:g}", page.percent(found.level[theta])) for theta in GOALS],
        texts=TEXTS,
        settings=table["settings"],
    )


def texts(files: Sequence[dict], table: dict, lengths: dict) -> str:
    """Which rows lose, and what other texts lose than those of `beats`.

    Args:
        files, table: as in `data_standing`.
        lengths: of `python -m anchor_lab lengths`.
    """
    found = data_standing(files, table)
    return render(
        "texts.md.j2",
        n=page.spaced(found.n),
        eighths=[page.digits(x, 2) for x in (found.eighths[0], *_ends(found.eighths[1:]))],
        group=CONFIG.group_size,
        others=[one.page for one in data_others(files, found.n, lengths)],
    )


def beyond(results: dict) -> str:
    """What the extension of this project loses beside the method as published, in how much time.

    Args:
        results: of the experiment `equal_time`.
    """
    n = max(equal_time.data_lengths(results["rows"]))
    lines = {line.way: line for line in equal_time.data_lines(results["rows"], n)}
    published = f"paper, θ = {CONFIG.theta:g}"
    paper, rows = lines[published], lines[ROWS_BY_HEAD]
    answers, _ = data_found(results["rows"])
    asked = ""
    if {published, ROWS_BY_HEAD} <= answers.keys():
        one, other = answers[ROWS_BY_HEAD], answers[published]
        asked = (
            f" Answers it gives back in part: at {page.spaced(ASKED)} tokens, without a tail, it "
            f"finds {one.ours} of {one.prompts} where dense attention finds {one.dense} and the "
            f"paper's test {other.ours}."
        )
    return (
        "*Beyond the paper*: with four single rows of each block asked beside its mean, and a "
        f"threshold for each head, an extension of this project, it loses {_nats(rows.lost)} "
        f"nats in place of {_nats(paper.lost)} at {page.spaced(n)} tokens, in "
        f"{page.percent(rows.of_dense)} of dense attention's time in place of "
        f"{page.percent(paper.of_dense)} ([equal_time.md](results/equal_time/equal_time.md), "
        f"[notebook 16](notebooks/16_can_we_do_better.ipynb)).{asked}\n"
    )


def _ends(numbers: Sequence[float]) -> tuple[float, float]:
    return min(numbers), max(numbers)


def _share(x: float | None) -> str:
    return "–" if x is None or x != x else page.percent(x)


def _nats(x: float) -> str:
    """Three decimals, with a true minus where any of them is left."""
    return page.digits(x, 3).replace("-0.000", "0.000").replace("-", "−")

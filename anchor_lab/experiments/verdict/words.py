"""Who is ahead where, in three sentences: one for each length, one about answers."""

from collections.abc import Sequence

from anchor_lab.experiments.answers.counts import Counts, shown
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.page import listed, number, percent, spaced
from anchor_lab.experiments.verdict.ahead import Ranking, Way
from anchor_lab.experiments.verdict.times import WORDS, Kind

OF = {"time": "of dense attention's time", "total_cost": "of its work"}
BY = {"time": "by time", "total_cost": "by work"}


def of_length(
    n: int,
    losses: Sequence[Ranking],
    recalls: Sequence[Ranking],
    equal_recall: dict[str, dict[str, float]],
    published: Sequence[str],
    dense: float | None = None,
) -> str:
    """The sentence of one length: by loss, or by recall where no loss is measured; or by times at
    equal recall where neither is.

    Args:
        n: N.
        losses, recalls: where methods stand, empty where not measured.
        equal_recall: milliseconds by recall and method.
        published: names that may be ahead.
        dense: time of the fastest dense attention, of the one that is the unit; None if not known.
    """
    if losses:
        return _rankings(n, " the whole model loses least", losses, dense)
    if recalls:
        said = ", where no loss is measured yet, heads keep most of their attention"
        return _rankings(n, said, recalls, dense)
    told = []
    for recall, times in equal_recall.items():
        there = {name: ms for name, ms in times.items() if name in published}
        if there and OURS in there:
            best = min(there, key=there.__getitem__)
            told.append(
                f"{best} for {recall} ({number(there[best])} ms"
                + (")" if best == OURS else f", {OURS} {number(there[OURS])} ms)")
            )
    if not told:
        return f"At {spaced(n)} tokens nothing is measured yet."
    return (
        f"At {spaced(n)} tokens, where neither losses nor recall over layers are measured yet, "
        f"the least time for a recall on the layers that were timed is that of {listed(told)}."
    )


def by_recall(n: int, recalls: Sequence[Ranking], dense: float | None) -> str:
    """The sentence of one length by recall, also where losses are measured."""
    return _rankings(n, " heads keep most of their attention", recalls, dense)


def _rankings(n: int, said: str, rankings: Sequence[Ranking], dense: float | None) -> str:
    telling = [one for one in rankings if one.tells]
    if not telling:
        return f"At {spaced(n)} tokens too few methods can be compared yet."
    leaders: dict[str, dict[str, list[str]]] = {}
    places: dict[str, list[str]] = {one.budget: [] for one in telling}
    modelled = False
    for one in telling:
        for_them = leaders.setdefault(" or ".join(one.first), {})
        for_them.setdefault(one.budget, []).append(percent(one.level))
        modelled |= bool(one.found[one.ranked[0]].kind)
        if one.place is not None:
            place = f"{one.place} of {len(one.ranked)} at {percent(one.level)}"
            places[one.budget].append(place)
    ahead = [
        f"{who} (for {' and '.join(f'{_and(x)} {OF[budget]}' for budget, x in found.items())})"
        for who, found in leaders.items()
    ]
    own = [
        f"{BY[budget]} {', '.join(found) or _without_place(telling, budget)}"
        for budget, found in places.items()
    ]
    by = ", by modelled times," if modelled else ""
    if dense is not None:
        ahead.append(f"and dense attention from {percent(dense)} of that time on")
    return (
        f"At {spaced(n)} tokens{said}{by} with {', '.join(ahead)}; AnchorAttention's place among "
        f"the published methods is {', and '.join(own)}."
    )


def _without_place(rankings: Sequence[Ranking], budget: str) -> str:
    known = any(OURS in one.found for one in rankings if one.budget == budget)
    return "none, it spends more" if known else "not known"


def of_answers(n: int, ways: Sequence[Way], published: str, kept: str) -> str:
    """The sentence about answers at one length.

    Args:
        n: tokens of the prompts.
        ways: every way to read them.
        published: the way that is ours as published.
        kept: the way that is ours as in models.
    """
    if not ways:
        return "Which answers are found is not measured yet."
    enough = [way for way in ways if way.counts.keeps() and way.time is not None]
    by_name = {way.name: way for way in ways}
    told = [
        f"AnchorAttention {said} {shown(by_name[name].counts.ours, by_name[name].counts.prompts)}"
        for name, said in ((published, "as published finds"), (kept, "with the tail of models"))
        if name in by_name
    ]
    dense = shown(ways[0].counts.dense, ways[0].counts.prompts)
    if enough:
        best = min(enough, key=lambda way: way.time.share)
        how = "" if best.time.kind == Kind.MEASURED else f", {WORDS[best.time.kind]}"
        first = (
            f"as many answers as dense attention finds ({dense}) take least time with "
            f"{best.label} ({percent(best.time.share)} of dense attention's{how})"
        )
    else:
        first = f"nobody whose time is known finds as many answers as dense attention ({dense})"
    return f"At {spaced(n)} tokens {'; '.join([first, *told])}."


def too_few(n: int, counts: Counts) -> str:
    """The sentence about answers where dense attention itself finds too few.

    Args:
        n: tokens of the prompts.
        counts: all that dense attention was asked.
    """
    return (
        f"At {spaced(n)} tokens dense attention itself finds "
        f"{shown(counts.dense, counts.prompts)}, too few for a loss to show."
    )


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

"""Who is ahead where, in three sentences: one for each length, one about answers."""

from collections.abc import Sequence

from anchor_lab.experiments.answers.counts import Counts, shown
from anchor_lab.experiments.compare.figure import OURS
from anchor_lab.experiments.page import listed, number, percent, spaced
from anchor_lab.experiments.verdict.ahead import Ranking
from anchor_lab.experiments.verdict.asked import Comparison, widest
from anchor_lab.experiments.verdict.times import WORDS, Kind

OF = {"time": "of cuDNN's time for dense attention", "total_cost": "of dense attention's work"}


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
        dense: time of the fastest dense attention, of cuDNN's; None if not known.
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
    """Who is first, and where ours stands, at the lowest and the highest level that tells."""
    telling = [one for one in rankings if one.tells]
    if not telling:
        return f"At {spaced(n)} tokens too few methods can be compared yet."
    # By time where ours has one: everything else is in the tables.
    by = {one.budget: [x for x in telling if x.budget == one.budget] for one in telling}
    known = [found for found in by.values() if any(OURS in one.found for one in found)]
    found = (known or list(by.values()))[0]
    shown = [found[0], found[-1]] if len(found) > 1 else found
    firsts: dict[str, list[str]] = {}
    for one in shown:
        firsts.setdefault(_first(one.first), []).append(percent(one.level))
    ahead = _and([f"with {who} for {_and(levels)}" for who, levels in firsts.items()])
    modelled = any(one.found[one.ranked[0]].kind for one in shown)
    end = ""
    if dense is not None and found[0].budget == "time":
        end = f"; the fastest dense attention takes {percent(dense)} of cuDNN's time"
    return (
        f"At {spaced(n)} tokens{said}{', by modelled times,' if modelled else ''} {ahead} "
        f"{OF[found[0].budget]}; AnchorAttention {_places(shown)}{end}."
    )


def _first(names: Sequence[str]) -> str:
    """The best, and the next that it is not told apart from; how many more there are."""
    if len(names) < 3:
        return " or ".join(names)
    more = len(names) - 2
    return f"{names[0]}, {names[1]} or {f'{more} others' if more > 1 else 'another one'}"


def _places(rankings: Sequence[Ranking]) -> str:
    """Of AnchorAttention, at each level."""
    told, number = [], "is number {} of {} published methods at {}"
    for one in rankings:
        at = percent(one.level)
        if one.place is not None:
            told.append(number.format(one.place, len(one.ranked), at))
            number = "{} of {} at {}"
        else:
            told.append(
                f"spends more than {at}" if OURS in one.found else f"has no known time at {at}"
            )
    return _and(told)


def of_answers(n: int, found: Sequence[Comparison], published: str, kept: str) -> str:
    """The sentence about answers at one length.

    Args:
        n: tokens of the prompts.
        found: ways that were asked the same prompts; the first has most ways.
        published: the way that is ours as published.
        kept: the way that is ours as in models.
    """
    if not found:
        return "Which answers are found is not measured yet."
    most, dense = found[0], found[0].dense
    count = f"{len(most.ways)} ways were" if len(most.ways) > 1 else "one way was"
    asked = f"{dense.prompts} prompts that {count} asked ({most.asked})"
    answered = shown(dense.dense, dense.prompts)
    enough = [way for way in most.ways if way.counts.keeps() and way.time is not None]
    if enough:
        best = min(enough, key=lambda way: way.time.share)
        how = "" if best.time.kind == Kind.MEASURED else f", {WORDS[best.time.kind]}"
        told = [
            f"{best.label} answers as many as dense attention ({answered}) in least time "
            f"({percent(best.time.share)} of cuDNN's{how})"
        ]
    else:
        told = [f"nobody whose time is known answers as many as dense attention ({answered})"]
    said = {published: "as published", kept: "with the tail of models"}
    own = [f"{x.ours} {said[way]}" for way in said if (x := most.of(way))]
    if own:
        told.append(f"AnchorAttention answers {_and(own)}")
    wide = widest(found, [published, kept])
    if wide is not None and len(wide.cells) > len(most.cells):
        x, y = wide.of(published), wide.of(kept)
        told.append(
            f"of {x.prompts} that it was asked in all, {x.ours} and {y.ours}, where dense "
            f"attention answers {x.dense}"
        )
    return f"At {spaced(n)} tokens, of the {asked}, {'; '.join(told)}."


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

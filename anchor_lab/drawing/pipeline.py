"""Who loads and who multiplies: one tile of queries of the Hopper kernel of stage 3, in time.

The order of the steps, what each waits for and what it sets free are those of
`kernels/anchor_kernels/sparse_hopper.py`; how long a step takes is made up.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from anchor_lab.drawing.shapes import CENTRED, box
from anchor_lab.drawing.style import ACCENT, INIT, INK, SKIPPED, STRIPE, TAIL, finish, panels

# Step, colour, words. "keys" and "values" are copies, "scores" and "output" products.
STEPS = {
    "keys": (SKIPPED, "copy of keys"),
    "values": (INIT, "copy of values"),
    "scores": (ACCENT, "product with keys"),
    "weights": (STRIPE, "exponentials"),
    "output": (TAIL, "product with values"),
}
COPIES, MATRIX = "copies", "matrix unit"  # each does one thing at a time, for whoever asks first
Event = tuple[str, int]  # a barrier and the tile of keys, or a consumer's product and its tile


@dataclass(frozen=True)
class Span:
    """One step: who, what, of which tile of keys, and when."""

    who: str
    step: str
    tile: int
    start: float
    end: float


@dataclass
class _Clock:
    """Events and when they happened, resources and when they are free, and what was done."""

    needed: dict[str, int]  # arrivals that complete an event of this name; 1 where not named
    happened: dict[Event, float] = field(default_factory=dict)
    arrivals: dict[Event, int] = field(default_factory=lambda: defaultdict(int))
    free: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    spans: list[Span] = field(default_factory=list)

    def arrive(self, event: Event, now: float) -> None:
        self.arrivals[event] += 1
        if self.arrivals[event] == self.needed.get(event[0], 1):
            self.happened[event] = now

    def begin(self, who: str, step: str, tile: int, resource: str, now: float, takes: float):
        """Ask for a resource; whoever asked does not wait. Returns when the step is done."""
        start = max(now, self.free[resource])
        self.free[resource] = start + takes
        self.spans.append(Span(who, step, tile, start, start + takes))
        return start + takes


def data_pipeline(
    tiles: int, consumers: int, stages: int, copy: float, product: float, exponentials: float
) -> list[Span]:
    """Every step of one producer and its consumers over a list of stripes.

    The producer copies keys and values of one tile after the other into `stages` buffers, each
    as soon as all consumers are done with what was in it. A consumer starts the product with the
    keys of tile i and then that with the values of tile i − 1, waits for the former alone, and
    does its exponentials while the latter runs.

    Args:
        tiles: of keys, at least 1.
        consumers: who share each tile.
        stages: buffers for keys, and as many for values.
        copy, product, exponentials: what one step takes, in any unit.

    Returns:
        The steps in the order in which they were begun.
    """
    clock = _Clock({"k_free": consumers, "v_free": consumers})
    takes = {"copy": copy, "product": product, "exponentials": exponentials}
    actors = [_producer(clock, tiles, stages, takes)]
    actors += [_consumer(clock, f"consumer {c}", tiles, takes) for c in range(consumers)]
    ready = [(0.0, number) for number in range(len(actors))]
    now, waiting = dict.fromkeys(range(len(actors)), 0.0), {}
    while ready:
        time, number = heapq.heappop(ready)
        now[number] = time
        try:
            wish = actors[number].send(time) if number in waiting else next(actors[number])
        except StopIteration:
            wish = None
        waiting[number] = wish
        for other, wanted in list(waiting.items()):
            if isinstance(wanted, float):  # busy by itself until then
                heapq.heappush(ready, (wanted, other))
            elif wanted in clock.happened:
                heapq.heappush(ready, (max(now[other], clock.happened[wanted]), other))
            else:
                continue
            waiting[other] = "queued"
    return clock.spans


def _producer(clock: _Clock, tiles: int, stages: int, takes: dict) -> Iterator:
    """As `gather`. Yields what it waits for and is sent the time when it goes on."""
    now = 0.0
    for i in range(tiles):
        for step, free, ready in (("keys", "k_free", "k_ready"), ("values", "v_free", "v_ready")):
            if i >= stages:  # the first round waits for nobody
                now = yield (free, i - stages)
            done = clock.begin("producer", step, i, COPIES, now, takes["copy"])
            clock.happened[ready, i] = done


def _consumer(clock: _Clock, name: str, tiles: int, takes: dict) -> Iterator:
    """As `attend_rows`: weights of a tile are done while its last product with values runs."""
    for i in range(tiles):
        now = yield ("k_ready", i)
        scores = clock.begin(name, "scores", i, MATRIX, now, takes["product"])
        output = None
        if i:
            now = yield ("v_ready", i - 1)
            output = clock.begin(name, "output", i - 1, MATRIX, now, takes["product"])
        now = yield max(now, scores)
        clock.arrive(("k_free", i), now)
        clock.spans.append(Span(name, "weights", i, now, now + takes["exponentials"]))
        now = yield now + takes["exponentials"]
        if output is not None:
            now = yield max(now, output)
            clock.arrive(("v_free", i - 1), now)
    now = yield ("v_ready", tiles - 1)
    output = clock.begin(name, "output", tiles - 1, MATRIX, now, takes["product"])
    now = yield max(now, output)
    clock.arrive(("v_free", tiles - 1), now)


def busy(spans: list[Span]) -> float:
    """Share of the time that the matrix unit multiplies."""
    products = [span for span in spans if span.step in ("scores", "output")]
    return sum(span.end - span.start for span in products) / max(span.end for span in spans)


def draw_pipeline(spans: list[Span], ax) -> None:
    """Who loads, who multiplies, and when?"""
    names = list(dict.fromkeys(span.who for span in spans))
    for span in spans:
        colour, _ = STEPS[span.step]
        lower = span.step in ("weights", "values")  # beside the products, and below the keys
        top = names.index(span.who) + 0.42 * lower
        ax.add_patch(box(span.start, top, span.end - span.start, 0.4, colour))
        ink = INK if span.step in ("keys", "values") else "white"
        look = CENTRED | {"fontsize": 7.5, "color": ink}
        ax.text((span.start + span.end) / 2, top + 0.2, str(span.tile), **look)
    for name, (colour, words) in STEPS.items():
        edge = INK if name == "keys" else colour  # a light one needs one
        ax.plot([], [], "s", color=colour, label=words, ms=7, mec=edge)
    ax.set(xlim=(0, max(span.end for span in spans)), ylim=(len(names), -0.1))
    ax.set_yticks([row + 0.41 for row in range(len(names))], names)
    ax.set(xlabel="time, one product is 1; numbers: the tile of keys")
    ax.legend(loc="lower left", bbox_to_anchor=(-0.12, 1), ncols=5, columnspacing=1, fontsize=8)


def show_pipeline(spans: list[Span], small_print: str) -> None:
    """The figure of `draw_pipeline`, with its words."""
    rows = len({span.who for span in spans})
    figure, ax = panels(size=(8.2, 1.3 + 0.5 * rows))
    draw_pipeline(spans, ax)
    finish(
        figure,
        draw_pipeline.__doc__ + "\n",  # the names of the steps stand below it
        small_print,
        f"A row for the producer and for each of {rows - 1} consumers. The producer's copies run "
        "ahead of the products. A consumer's exponentials lie below its products, and while it "
        "does them, the others' products fill the time; the matrix unit is busy "
        f"{busy(spans):.0%} of the time.",
    )

"""Does AnchorAttention pay here, and from which length on? What a report says first.

Times are those that the cost model of the integration expects (`anchor_models.integration.cost`):
the one that `when="auto"` decides by, with coefficients of the device asked about. They are of a
layer where it was measured what else a layer does, and of its attention alone elsewhere.

The share of the candidates that is kept is the text's own: measured up to its length, and from
there on a power of the length, as its groups go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import linear_regression

from anchor_lab.experiments.page import percent
from anchor_lab.report.inspected import InspectedHeads
from anchor_models.backend import TAIL
from anchor_models.integration import cost
from anchor_models.integration.cost import Expected, Shape
from anchor_ref.config import AnchorConfig
from anchor_ref.regions import causal_pairs, groups

LONGEST = 2**20
LENGTHS = tuple(2**n for n in range(12, 18))  # of the table
FIXED = ("call", "rows")  # of a call's work: what no pair is counted for
STEPS = 8  # lengths that are asked about between a power of two and the next
# As models run it unless told otherwise.
CONFIG = AnchorConfig(tail=TAIL)


@dataclass(frozen=True)
class AtLength:
    """What to expect of one layer at one length.

    Attributes:
        tokens: N.
        density: share of the causal pairs, with the tail of models.
        measured: whether the share of the candidates is this text's own, not its continuation.
        expected: times of the two.
    """

    tokens: int
    density: float
    measured: bool
    expected: Expected


@dataclass(frozen=True)
class Floor:
    """What a layer of AnchorAttention takes without a stripe, which no θ can better.

    Attributes:
        density: with the tail of models.
        pays: whether it would be a gain.
        host: milliseconds in which the host issues the layer, the same at any length.
        busy: how many times as long a busy host takes.
        device: milliseconds in which the device computes it.
        fixed: of these, those that are not for pairs of a query and a key.
        dense: milliseconds in which the device computes dense attention's layer.
        margin: how much longer that must take for a gain.
    """

    density: float
    pays: bool
    host: float
    busy: float
    device: float
    fixed: float
    dense: float
    margin: float

    def why(self, what: str, density: float, longer: bool) -> str:
        """Which of host, calls and pairs decides where it does not pay.

        Args:
            what: what is timed, "a layer".
            density: with stripes.
            longer: whether a gain is expected of a longer prompt that the model reads.
        """
        least = 1 + self.margin
        if self.busy * self.host > self.device:
            told = f"the host needs {self.host:.3g} ms to issue {what} of AnchorAttention"
            if self.host <= self.device:
                told += f", {self.busy:g} times as long where it is busy"
            told += ", at any length and any θ, and the device would be done in "
            told += f"{self.device:.3g} ms without a stripe"
            if self.device * least < self.dense:
                if longer:
                    return f"{told}. A longer prompt would, or a faster host"
                return f"{told}. A faster host would"
            return (
                f"{told}. A faster host would not either, dense takes the device "
                f"{self.dense:.3g} ms and a gain must be larger than {rounded(self.margin)}"
            )
        if self.fixed * least >= self.dense:
            return (
                f"{what} of AnchorAttention takes {self.fixed:.3g} ms beside its pairs, and "
                f"{self.dense:.3g} ms in all with dense attention"
            )
        return (
            "first group, windows and tail alone, which are kept with any θ, are "
            f"{self.density:.3f} of the pairs, and the density is {density:.3f}"
        )


@dataclass(frozen=True)
class Forecast:
    """What to do on one device with one threshold.

    Attributes:
        device: name.
        theta: threshold for all heads.
        here: at the length of the text.
        table: at other lengths too, ascending.
        faster_from: the least length from which on a gain is expected; None for none up to
            `LONGEST`.
        error: the relative error of a side's time, as the fit was judged; None where it was not.
        margin: how much larger a gain must be than nothing.
        floor: with no stripe at all, at the length of the text.
        positions: the longest prompt that the model reads; None where it does not say.
        whole_layer: whether times are of whole layers, not of attention alone.
    """

    device: str
    theta: float
    here: AtLength
    table: tuple[AtLength, ...]
    faster_from: int | None
    error: float | None
    margin: float
    floor: Floor
    positions: int | None
    whole_layer: bool

    @property
    def within_reach(self) -> bool:
        """Does the model read prompts so long that a gain is expected?"""
        return self.faster_from is not None and self.faster_from <= (self.positions or LONGEST)

    def __str__(self) -> str:
        """One line: what to do."""
        n, gain = self.here.tokens, self.here.expected.gain
        if gain:
            return f"faster here: use AnchorAttention at {n} tokens; {self._from_when()}"
        slower = self.here.expected.speedup < 1
        what = "slower here" if slower else "no clear gain here"
        if not self.within_reach:
            what = f"do not use it here, {'it is slower' if slower else 'no clear gain'}"
        return f"{what}: use sdpa at {n} tokens; {self._from_when()}"

    def _from_when(self) -> str:
        if self.faster_from is None:
            return f"not faster at any length up to {LONGEST}"
        told = f"faster from about {self.faster_from} tokens on"
        if not self.within_reach:
            told += f", and the model reads {self.positions}"
        return told

    def reasons(self) -> list[str]:
        """Sentences that say why, and how sure that is."""
        here = self.here.expected
        what = "a layer" if self.whole_layer else "a layer's attention"
        told = [
            f"At {self.here.tokens} tokens and θ = {self.theta:g} {what} is expected "
            f"to take {here.anchor:.3g} ms, dense {here.dense:.3g} ms, {here.speedup:.2f}× as "
            f"fast, on {self.device}"
            + (f"; either may be off by {rounded(self.error)}." if self.error is not None else ".")
        ]
        if not here.gain:
            told.append("At this length do not use it here.")
            if not self.floor.pays:
                why = self.floor.why(what, self.here.density, longer=self.within_reach)
                told.append(f"No θ would change that: {why}.")
        return told

    def lines(self) -> list[str]:
        """The forecast, why, and a table by length, for a terminal."""
        head = f"{'tokens':>8}  {'density':>8}  {'ms':>9}  {'sdpa, ms':>9}  {'speed':>7}"
        rows = [
            f"{x.tokens:>8}  {x.density:>7.3f}{' ' if x.measured else '*'}  "
            f"{x.expected.anchor:>9.3g}  {x.expected.dense:>9.3g}  {x.expected.speedup:>6.2f}×"
            for x in self.table
        ]
        return [str(self), *self.reasons(), "", head, *rows, ASSUMED]


ASSUMED = (
    "ms: a layer, or its attention alone, as said above; or what the host issues for the layer "
    "where that takes longer. "
    f"Densities with a tail of {TAIL} rows, as in models. "
    "*: longer than the text; its share of the candidates continued"
)


def forecast(found: InspectedHeads, theta: float, values: dict) -> Forecast:
    """What the cost model says of a model that was inspected.

    Args:
        found: of the model, on a text.
        theta: one of `found.thetas`, for all heads.
        values: coefficients, see `cost.Coefficients`.
    """
    at, n = found.thetas.index(theta), found.n
    shares = found.shares[at].mean(0).tolist()

    def look(tokens: int) -> AtLength:
        share = share_at(shares, n, tokens)
        expected = _expected(found, values, tokens, share)
        return AtLength(tokens, density_at(tokens, share), tokens <= n, expected)

    longest = max(n, min(found.model["positions"] or LENGTHS[-1], LENGTHS[-1]))
    table = sorted({n, *(x for x in LENGTHS if x <= longest)})
    grid = [x for x in _grid() if x > CONFIG.group_size]
    gains = [look(x).expected.gain for x in grid]
    first = max((i + 1 for i, gain in enumerate(gains) if not gain), default=0)
    return Forecast(
        device=values["device"],
        theta=theta,
        here=look(n),
        table=tuple(map(look, table)),
        faster_from=grid[first] if first < len(grid) else None,
        error=values.get("error"),
        margin=values["margin"],
        floor=_floor(found, values),
        positions=found.model["positions"],
        whole_layer=any(values["layer_device_ms"].values()),
    )


def rounded(share: float) -> str:
    """A share in whole percent."""
    return percent(round(share, 2))


def attention_alone(values: dict) -> dict:
    """The same coefficients of a layer that does nothing else."""
    return values | {"layer_device_ms": {}}


def share_at(shares: Sequence[float], n: int, tokens: int) -> float:
    """Of all candidates of a prompt of so many tokens, the share that is kept.

    Args:
        shares: of each group of a text of n tokens.
        n: tokens of the text.
        tokens: of the prompt. The groups of a shorter one are the text's own, but for the last,
            of fewer rows; a longer one has the text's share, times a power of the length.
    """
    layout = groups(AnchorConfig(), min(n, tokens), min(n, tokens))
    kept = [len(x.rows) * len(x.candidates) * s for x, s in zip(layout, shares, strict=False)]
    share = sum(kept) / max(1, sum(len(x.rows) * len(x.candidates) for x in layout))
    return min(1.0, share * max(1.0, tokens / n) ** exponent(shares))


def exponent(shares: Sequence[float]) -> float:
    """How the share falls with the keys before a group: a slope of logarithms, from −1 to 0.

    0, so that nothing is hoped for, where fewer than two groups have candidates.
    """
    points = [(log(g), log(share)) for g, share in enumerate(shares) if g and share > 0]
    if len(points) < 2:
        return 0.0
    return max(-1.0, min(0.0, linear_regression(*zip(*points, strict=True)).slope))


def density_at(tokens: int, share: float) -> float:
    """Density where so much of the candidates is kept, with the tail of models."""
    always, stripes, _, tail = cost.method_pairs(CONFIG, tokens, tokens)
    return (always + tail + share * stripes) / causal_pairs(tokens)


def prefill_speedup(found: InspectedHeads, expected: Expected, values: dict) -> float | None:
    """Of a whole prefill: all layers that attend, and all linear layers at the rate of a product.

    Layers that could not be measured, such as those with a window, are left out on both sides.
    None where no such rate is known. `expected` is of attention alone. Where the host is what is
    waited for, it would issue linear layers meanwhile; they are added all the same, so there the
    ratio errs towards 1.
    """
    if "matrix_tflops" not in values:
        return None
    layers = found.model["layers"] - len(found.skipped)
    linear = 2 * found.model["linear_parameters"] * found.n / values["matrix_tflops"] / 1e9
    return (layers * expected.dense + linear) / (layers * expected.anchor + linear)


def _expected(found: InspectedHeads, values: dict, tokens: int, share: float) -> Expected:
    return cost.expected_at(values, _shape(found, tokens), CONFIG, share)


def _floor(found: InspectedHeads, values: dict) -> Floor:
    shape, ms = _shape(found, found.n), cost.device_ms
    rest = ms(values["layer_device_ms"], cost.layer_work(shape))
    work = cost.anchor_work(shape, CONFIG, 0.0)
    unpaired = {name: work[name] if name in FIXED else 0.0 for name in work}
    ours = values["anchor"]
    return Floor(
        density=density_at(found.n, 0.0),
        pays=_expected(found, values, found.n, 0.0).gain,
        host=ours["host_ms"] + values["layer_host_ms"],
        busy=values["host_busy"],
        device=rest + ms(ours["device_ms"], work),
        fixed=rest + ms(ours["device_ms"], unpaired),
        dense=rest + ms(values["dense"]["device_ms"], cost.dense_work(shape)),
        margin=values["margin"],
    )


def _shape(found: InspectedHeads, tokens: int) -> Shape:
    heads, kv_heads = found.model["heads"], found.model["kv_heads"]
    return Shape(1, heads, kv_heads, tokens, tokens, found.head_dim)


def _grid() -> list[int]:
    lengths = [round(exp(log(2) * step / STEPS)) for step in range(11 * STEPS, 20 * STEPS + 1)]
    # Two digits: nobody knows more.
    return sorted({round(x, 1 - len(str(x)) + 1) for x in lengths})

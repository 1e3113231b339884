"""How AnchorAttention runs inside a model: thresholds, sizes, dense layers, implementation."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from anchor_models.backend import TAIL, check_backend
from anchor_models.thresholds import Thresholds
from anchor_ref.config import AnchorConfig

# A further option is a name here, an argument of `options`, and a field of `Options` that
# `_complete` fills; one more size needs no more than the name and the argument.
EXTENSION = ("outliers", "outlier_theta", "outlier_choice")  # beyond the paper
SIZES = ("block_size", "step", "init_blocks", "window_blocks", *EXTENSION)
FIELDS = ("theta", "dense_layers", "backend", "when", "tail", *SIZES)
WHEN = ("auto", "always")
CONFIG_FIELD = "anchor_attention"

_changes: ContextVar[Mapping] = ContextVar(
    "anchor_attention_options", default=MappingProxyType({})
)


@dataclass(frozen=True)
class Options:
    """What holds for one call of one model, every choice made.

    Attributes:
        thetas: one threshold for all, or by layer one for all its heads or one for each query
            head; natural-log units.
        dense_layers: layers that keep dense attention.
        backend: "auto", "triton" or "torch", see `choose_backend`.
        when: "auto" or "always", see `options`.
        sizes: block and group sizes, and the tail; its own θ plays no part.
        longest: tokens of the longest prompt that the thresholds were calibrated for; None where
            they are of no calibration.
    """

    thetas: float | dict[int, float | tuple[float, ...]]
    dense_layers: frozenset[int]
    backend: str
    when: str
    sizes: AnchorConfig
    longest: int | None = None

    @property
    def may_be_dense(self) -> bool:
        """Does dense attention run where no gain is expected? A backend by name forbids it."""
        return self.when == "auto" and self.backend == "auto"

    def config(self, theta: float) -> AnchorConfig:
        """The sizes, with this threshold."""
        return _with_theta(self.sizes, theta)

    def theta(self, layer: int, n_heads: int) -> float | tuple[float, ...]:
        """θ of a layer: one number, or one for each of its query heads.

        Equal thresholds are one number, also for a rank that holds `n_heads` of them, which
        need not divide the layer's.

        Raises:
            ValueError: the layer has no threshold, or not one for each head.
        """
        if not isinstance(self.thetas, dict):
            return self.thetas
        if layer not in self.thetas:
            raise ValueError(
                "theta must have an entry for each layer that runs AnchorAttention, "
                f"got none for layer {layer}"
            )
        found = self.thetas[layer]
        if not isinstance(found, tuple):
            return found
        if len(set(found)) == 1 and len(found) >= n_heads:
            return found[0]
        if len(found) != n_heads:
            raise ValueError(
                f"theta must have one value for each of the {n_heads} query heads of layer "
                f"{layer}, got {len(found)}; where ranks share the heads of a layer, its heads "
                "must have equal thresholds, as calibrate(..., per='layer') gives them"
            )
        return found


@contextmanager
def options(
    *,
    theta: object = None,
    dense_layers: Iterable[int] | None = None,
    backend: str | None = None,
    when: str | None = None,
    tail: int | None = None,
    block_size: int | None = None,
    step: int | None = None,
    init_blocks: int | None = None,
    window_blocks: int | None = None,
    outliers: int | None = None,
    outlier_theta: float | None = None,
    outlier_choice: str | None = None,
) -> Iterator[Options]:
    """Inside the `with`, models with `attn_implementation="anchor_attention"` run so.

    What is not named stays as the surrounding `with`, else `model.config.anchor_attention` (a dict
    with the same names), else `AnchorConfig` has it, but for the tail: `TAIL` rows, 512. A
    calibration names its sizes and its tail along with its thresholds: the sizes take the place of
    those around, and stay when θ alone is named further in.

    Another thread, started inside the `with` too, knows nothing of it: write into
    `model.config.anchor_attention` what all threads shall do, or start the thread with
    `contextvars.copy_context().run` as its target.

    Args:
        theta: one threshold for all; a sequence with one entry for each layer; a mapping from
            layer to entry; a `Calibration`, or the path of a saved one: prompts longer than it
            was made for get a warning. An entry is one number or
            a sequence with one for each query head. +inf keeps a head dense.
        dense_layers: layers that keep dense attention.
        backend: "auto", "triton" or "torch", see `choose_backend`.
        when: "auto" takes dense attention where AnchorAttention is not expected to be faster, by
            times measured on GPUs of the same kind, see `cost`; where none were measured it acts
            as "always", and so it does with a backend that is named. "always" runs AnchorAttention
            wherever there is something to choose: for looking at what it keeps.
        tail: rows at the end of each text that see every key, see `anchor_ref.tail`. A prompt in
            chunks has a tail in each, since a chunk cannot know that it is not the last: dense
            rows that nobody asks of, 2 · tail / N of dense attention for each chunk. 0 switches it
            off; name it for all chunks but the last.
        block_size, step, init_blocks, window_blocks: as in `AnchorConfig`. Naming others than the
            calibration's is refused while its thresholds hold.
        outliers, outlier_theta, outlier_choice: rows that stage 2 asks by themselves, an extension
            beyond the paper, as in `AnchorConfig`, but "even" unless told otherwise: the kernels
            know no other choice. θ₂ must be left out where heads have thresholds of their own.
            That they take time is not in what "auto" expects.

    Yields:
        What was named here and around, completed by the defaults.

    Raises:
        ValueError: a value is outside what is described.
        OSError: there is no such calibration file.
    """
    named = {field: value for field, value in locals().items() if value is not None}
    changes = _changes.get() | _spelled_out(named)
    completed = _complete(changes)
    token = _changes.set(changes)
    try:
        yield completed
    finally:
        _changes.reset(token)


class _Made(NamedTuple):
    """Options, and all that they were made of."""

    own: object
    file: int | None  # when the calibration file was written that `own` names
    changes: Mapping
    n_layers: int
    options: Options


_made: dict[int, _Made] = {}  # by the id of a configuration; what is in it decides, not the id
MOST_MADE = 64


def in_force() -> Mapping:
    """What the `with`s around say, spelled out; another object wherever it may be something else.

    Nobody writes into it: as long as it is the same object, it says the same.
    """
    return _changes.get()


def current_options(config) -> Options:
    """What holds now for a model with this transformers configuration.

    They are made anew only where the configuration or the `with` around has changed: each layer
    asks, and gets what the first one got.

    Raises:
        ValueError: `config.anchor_attention` is no dict of options, a value is outside what
            `options` describes, or a layer that it names does not exist.
    """
    own, changes = getattr(config, CONFIG_FIELD, None), _changes.get()
    n_layers, file = config.num_hidden_layers, None
    if own and isinstance(own, Mapping) and isinstance(own.get("theta"), str | PathLike):
        file = Path(own["theta"]).stat().st_mtime_ns
    last = _made.get(id(config))
    if (
        last is not None
        and last.changes is changes  # nobody writes into it
        and (last.n_layers, last.file) == (n_layers, file)
        and last.own == own
    ):
        return last.options
    kept = deepcopy(own)  # before an iterator in it is used up; it may be written into later
    made = _made_anew(config, own, changes)
    if len(_made) >= MOST_MADE:
        _made.clear()
    _made[id(config)] = _Made(kept, file, changes, n_layers, made)
    return made


def _made_anew(config, own: object, changes: Mapping) -> Options:
    own = own or {}
    if not isinstance(own, Mapping) or not set(own) <= set(FIELDS):
        raise ValueError(
            f"config.{CONFIG_FIELD} must be a dict with names among {', '.join(FIELDS)}, "
            f"got {own!r}"
        )
    found = _complete(_spelled_out(own) | changes)
    _check_layers("dense_layers", found.dense_layers, config.num_hidden_layers)
    if isinstance(found.thetas, dict):
        _check_layers("theta", found.thetas, config.num_hidden_layers)
    return found


def _spelled_out(named: Mapping) -> dict:
    """The same choices, with the sizes that a calibration among them holds for.

    Raises:
        ValueError: other sizes are named beside it, or `dense_layers` is no collection.
        OSError: there is no such calibration file.
    """
    named = dict(named)
    theta = named.get("theta")
    if isinstance(theta, str | PathLike):
        theta = named["theta"] = _load(Path(theta), Path(theta).stat().st_mtime_ns)
    if isinstance(theta, Thresholds):
        _check_sizes(theta, named)
        named |= {field: getattr(theta.config, field) for field in SIZES}
        # The thresholds are for rows before the tail: it may be another one.
        named.setdefault("tail", theta.config.tail)
    if "dense_layers" in named:
        dense = named["dense_layers"]
        if isinstance(dense, str) or not isinstance(dense, Iterable):  # "12" is not layers 1 and 2
            raise ValueError(f"dense_layers must be a list of layers, such as [12], got {dense!r}")
        named["dense_layers"] = tuple(dense)  # an iterator would serve only once
    return named


def _check_sizes(calibration: Thresholds, named: Mapping) -> None:
    """Refuse sizes that the thresholds do not hold for."""
    for field in SIZES:
        holds_for = getattr(calibration.config, field)
        if named.get(field, holds_for) != holds_for:
            raise ValueError(
                f"{field} must be {holds_for}, as the thresholds were calibrated for, "
                f"got {named[field]!r}"
            )


def _complete(named: Mapping) -> Options:
    """Every choice made; what `_spelled_out` gave for one `with`, and for those around."""
    theta, longest = named.get("theta", AnchorConfig().theta), None
    if isinstance(theta, Thresholds):
        _check_sizes(theta, named)  # a `with` further in may have named others
        theta, longest = theta.thetas, theta.lengths[1]
    backend = named.get("backend", "auto")
    check_backend(backend)
    when = named.get("when", "auto")
    if when not in WHEN:
        raise ValueError(f"when must be one of 'auto', 'always', got {when!r}")
    dense = frozenset(_layer("dense_layers", layer) for layer in named.get("dense_layers", ()))
    sizes = {field: named[field] for field in SIZES if field in named}
    if sizes.get("outliers"):
        sizes.setdefault("outlier_choice", "even")
    sizes["tail"] = named.get("tail", TAIL)
    return Options(_by_layer(theta), dense, backend, when, AnchorConfig(**sizes), longest)


@lru_cache(maxsize=1024)  # one for each layer of several models
def _with_theta(sizes: AnchorConfig, theta: float) -> AnchorConfig:
    return replace(sizes, theta=theta)


@lru_cache(maxsize=4)
def _load(path: Path, changed: int) -> Thresholds:
    """The calibration of a file, read again only when the file has changed."""
    return Thresholds.load(path)


def _by_layer(theta: object) -> float | dict[int, float | tuple[float, ...]]:
    if isinstance(theta, Mapping):  # the keys of a configuration read from JSON are strings
        return {_layer("theta", layer): _entry(entry) for layer, entry in theta.items()}
    if isinstance(theta, Sequence):
        return {layer: _entry(entry) for layer, entry in enumerate(theta)}
    return _number(theta)


def _entry(entry: object) -> float | tuple[float, ...]:
    return tuple(map(_number, entry)) if isinstance(entry, Sequence) else _number(entry)


def _number(theta: object) -> float:
    if not isinstance(theta, Real) or isinstance(theta, bool):
        raise ValueError(
            "theta must be a number, a sequence or mapping of them by layer, a Calibration or a "
            f"path, got {theta!r}"
        )
    return AnchorConfig(theta=float(theta)).theta


def _layer(field: str, layer: object) -> int:
    if isinstance(layer, str) and layer.isdecimal():
        return int(layer)
    if not isinstance(layer, Integral) or isinstance(layer, bool) or layer < 0:
        raise ValueError(f"{field} must name layers by integers of at least 0, got {layer!r}")
    return int(layer)


def _check_layers(field: str, layers: Iterable[int], n_layers: int) -> None:
    if layers and max(layers) >= n_layers:
        raise ValueError(f"{field} must name layers in 0..{n_layers - 1}, got {sorted(layers)}")

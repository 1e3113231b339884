"""What the first layer of a pass finds out, and its other layers need not ask again.

Each layer has to know which texts its tensors hold, which options are in force and what is
expected to be faster. Within one pass of a model the answers are the same from layer to layer, and
where prompts are short asking would take longer than attention does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import ref

import torch
from torch import Size, Tensor

from anchor_models.integration.later import Later, last_layer
from anchor_models.integration.options import in_force
from anchor_models.integration.record import running_record
from anchor_models.integration.sequences import Tokens, refuse_restarts
from anchor_models.interface import BEYOND_QKV
from anchor_ref.inputs import check_type

# Handed over beside q, k and v: where one of these is named, every layer is looked at.
LOOKED_AT = {*BEYOND_QKV, "is_causal", "cu_seq_lens_q", "cu_seq_lens_k"}


@dataclass(frozen=True, eq=False, slots=True)
class Decision:
    """What becomes of a layer whose whole input is one text, and under which conditions.

    Attributes:
        attend: computes it from the layer, q, k, v, dropout and scaling, `[B, Nq, Hq, D]`; None
            where it would have to look closer.
        config, mask, positions: what the layer was handed, and must be handed again.
        versions: how often mask and positions had been written to.
        names: of all that was handed over beside q, k, v and mask.
        q_size, k_size, dtype, device: of q and k.
        changes: the options of the `with` around, see `options.in_force`.
        of_layer: whether it holds for another layer with this index; None where it does for all.
    """

    attend: Callable[..., Tensor | None]
    config: object
    mask: Tensor | None
    positions: Tensor | None
    versions: tuple[int, int]
    names: frozenset[str]
    q_size: Size
    k_size: Size
    dtype: torch.dtype
    device: torch.device
    changes: Mapping
    of_layer: Callable[[int], bool] | None


class Pass:
    """One pass of a model: what its layers are handed alike, and what was found out from it.

    Within a pass the configuration is one, and the index of the layer grows. Where it does not,
    the model reads anew, or another one reads from the same buffers, and what stands in them may
    have changed: tensors of inference mode, and whoever writes around autograd, count no writes.

    Args:
        config: of the model.
        layer: the one that asks.
        sizes: batch, queries, keys.
        tensors: what tells texts apart, see `pass_of`; None for what is not given.

    Attributes:
        layer: the last one that asked.
        texts: of the call; None while nobody has read them, or where a mask of another kind says
            who sees whom.
        decision: None while nothing was decided that would serve other layers.
        positions_go_on: do they not begin again? None where that is known; see `hear`.
    """

    __slots__ = (
        *("_config", "_ids", "_last", "_seen", "_sizes"),
        *("decision", "layer", "positions_go_on", "texts"),
    )

    def __init__(self, config, layer: int, sizes: tuple, tensors: tuple):
        self.layer = layer
        self.texts: list[Tokens] | None = None
        self.decision: Decision | None = None
        self.positions_go_on: Later | None = None
        self._last = last_layer(config)
        self._config = ref(config) if config is not None else lambda: None
        self._sizes = sizes
        self._ids = tuple(map(id, tensors))
        self._seen = [(ref(x), _version(x)) for x in tensors if x is not None]

    @property
    def config(self):
        """Of the model; None when it is gone."""
        return self._config()

    def hear(self, wait: bool) -> None:
        """Refuse positions that begin again, as soon as that is known.

        Args:
            wait: for what is not known; False: ask again.

        Raises:
            ValueError: they do.
        """
        if self.positions_go_on is None:
            return
        found = self.positions_go_on.known(wait)
        if found is not None:
            self.positions_go_on = None
            refuse_restarts(found)

    def is_at(self, layer: int) -> None:
        """A later layer of the pass asks."""
        self.layer = layer
        if self.positions_go_on is not None:
            self.hear(wait=layer >= self._last)

    def goes_on(self, config, layer: int, sizes: tuple, tensors: tuple) -> bool:
        """Is this layer a later one of the same pass?"""
        if (
            layer <= self.layer
            or sizes != self._sizes
            or tuple(map(id, tensors)) != self._ids
            or self._config() is not config
        ):
            return False
        # An `id` says who it is while it is alive.
        for seen, version in self._seen:
            x = seen()
            if x is None or _version(x) != version:
                return False
        return True


def pass_of(q_size: Size, k_size: Size, mask: Tensor | None, kwargs: Mapping, module) -> Pass:
    """The pass that a call belongs to: the last one, or a new one.

    Args:
        q_size, k_size: shapes of the layer's q and k.
        mask, kwargs: as the layer got them; of `kwargs` what tells texts apart: `position_ids`,
            `cu_seq_lens_q`, `cu_seq_lens_k`.
        module: the layer, with its `layer_idx` and `config`.

    Raises:
        TypeError: bounds are no tensor of integers.
    """
    global _last  # replaced as a whole: another thread sees the old one or the new
    given = kwargs.get
    tensors = (mask, given("position_ids"), given("cu_seq_lens_q"), given("cu_seq_lens_k"))
    if tensors[2:] != (None, None):
        for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
            if given(name) is not None:
                check_type(name, given(name), Tensor)
    sizes = (q_size[0], q_size[2], k_size[2])
    found, layer = _last, module.layer_idx
    if found.goes_on(module.config, layer, sizes, tensors):
        found.is_at(layer)
        return found
    found.hear(wait=True)  # of a model whose last layers have another mask, or do not ask
    _last = Pass(module.config, layer, sizes, tensors)
    return _last


def decided(module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: Mapping):
    """What an earlier layer of the pass found out, where it holds for this one, too; else None.

    It is asked in every layer, and takes about a microsecond.

    Args:
        module, query, key, mask, kwargs: as the layer calls its attention.
    """
    last = _last
    found, layer = last.decision, getattr(module, "layer_idx", None)
    if (
        found is None
        or layer is None
        or layer <= last.layer
        or module.config is not found.config
        or mask is not found.mask
        or kwargs.keys() != found.names
        or kwargs.get("position_ids") is not found.positions
        or query.shape != found.q_size
        or key.shape != found.k_size
        or query.dtype != found.dtype
        or query.device != found.device
        or in_force() is not found.changes
        or running_record() is not None
        or not getattr(module, "is_causal", True)
        or (_version(mask), _version(found.positions)) != found.versions
        or (found.of_layer is not None and not found.of_layer(layer))
    ):
        return None
    last.is_at(layer)
    return found


def decide(
    read: Pass,
    module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    kwargs: Mapping,
    attend: Callable[..., Tensor | None],
    of_layer: Callable[[int], bool] | None,
) -> None:
    """Let later layers of this pass do without asking, see `Decision`."""
    names, positions = frozenset(kwargs), kwargs.get("position_ids")
    if names & LOOKED_AT:
        return
    versions = (_version(mask), _version(positions))
    sizes = (query.shape, key.shape, query.dtype, query.device)
    read.decision = Decision(
        attend, module.config, mask, positions, versions, names, *sizes, in_force(), of_layer
    )


def _version(x: Tensor | None) -> int:
    """How often a tensor was written to; tensors of inference mode do not count it."""
    return 0 if x is None or x.is_inference() else x._version


_last = Pass(None, 0, (), (None,) * 4)

"""Which implementation runs: the Triton kernels or the reference. Decided here alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

import anchor_ref
from anchor_ref.config import AnchorConfig
from anchor_ref.inputs import check_type
from anchor_ref.plan import AnchorTrace

BACKENDS = ("auto", "triton", "torch")
TAIL = 512  # rows that are exact inside models: a question, and instructions that follow it


@dataclass(frozen=True)
class BackendChoice:
    """What runs, and why.

    Attributes:
        name: "triton" for `anchor_kernels`, "torch" for `anchor_ref`.
        reason: one sentence.
    """

    name: str
    reason: str


def check_backend(backend: str) -> None:
    """Refuse what is none of `BACKENDS` with a ValueError."""
    if backend not in BACKENDS:
        allowed = ", ".join(repr(name) for name in BACKENDS)
        raise ValueError(f"backend must be one of {allowed}, got {backend!r}")


def choose_backend(
    q: Tensor, backend: str = "auto", config: AnchorConfig | None = None
) -> BackendChoice:
    """What `anchor_attention` would run for queries like q.

    Args:
        q: queries, `[B, Hq, Nq, D]`; dtype, head size and device are looked at.
        backend: "auto" takes the kernels where they can run on q's GPU, and the reference
            elsewhere. "triton" and "torch" take what they name.
        config: None means `AnchorConfig()`. Of outlier rows, an extension, the kernels know evenly
            spaced ones: with others "auto" takes the reference.

    Raises:
        TypeError: `config` is no `AnchorConfig`.
        ValueError: `backend` is none of these.
        RuntimeError: "triton" was asked for and cannot run here, on such queries or with this
            config; the message says why. Nothing else is run in its place.
    """
    check_backend(backend)
    if config is not None:
        check_type("config", config, AnchorConfig)
    if backend == "torch":
        return BackendChoice("torch", "backend='torch' was asked for")
    obstacle = _why_no_kernels(q, config)
    if backend == "triton":
        if obstacle is not None:
            raise RuntimeError(f"backend='triton' cannot run: {obstacle}")
        return BackendChoice("triton", "backend='triton' was asked for")
    if obstacle is None and not q.is_cuda:
        obstacle = "q is on the CPU, where Triton only interprets, slowly"
    if obstacle is not None:
        return BackendChoice("torch", f"the kernels cannot run: {obstacle}")
    return BackendChoice("triton", f"the kernels can run on {q.device} in {q.dtype}")


def implementation(choice: BackendChoice):
    """The package that a choice names: `anchor_kernels` or `anchor_ref`."""
    if choice.name == "torch":
        return anchor_ref
    import anchor_kernels

    return anchor_kernels


def anchor_attention(
    q: Float[Tensor, "B Hq Nq D"],
    k: Float[Tensor, "B Hkv Nk D"],
    v: Float[Tensor, "B Hkv Nk D"],
    config: AnchorConfig | None = None,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, "S"] | None = None,
    *,
    backend: str = "auto",
    return_trace: bool = False,
    theta_by_head: Sequence[float] | None = None,
) -> Float[Tensor, "B Hq Nq D"] | tuple[Float[Tensor, "B Hq Nq D"], AnchorTrace]:
    """AnchorAttention by the implementation that `choose_backend` names.

    Args:
        q, k, v, config, scale, cu_seqlens, return_trace, theta_by_head: as in
            `anchor_ref.anchor_attention`.
        backend: "auto", "triton" or "torch", see `choose_backend`.

    Returns:
        What `anchor_ref.anchor_attention` returns.

    Raises:
        TypeError, ValueError: as `anchor_ref.anchor_attention`, and see `choose_backend`.
        RuntimeError: see `choose_backend`.
    """
    check_type("q", q, Tensor)  # the implementation checks the rest
    chosen = implementation(choose_backend(q, backend, config))
    return chosen.anchor_attention(
        *(q, k, v, config, scale, cu_seqlens),
        return_trace=return_trace,
        theta_by_head=theta_by_head,
    )


def _why_no_kernels(q: Tensor, config: AnchorConfig | None) -> str | None:
    try:
        from anchor_kernels.support import why_no_outliers, why_unsupported
    except ImportError as missing:  # Triton, for one, has wheels for Linux only
        return f"anchor_kernels cannot be imported here ({missing})"
    return why_unsupported(q) or why_no_outliers(config or AnchorConfig())

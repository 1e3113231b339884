"""Memory and communication of a prefill on many GPUs, on paper.

    python -m anchor_models.parallel.cost        the tables of docs/memory_and_communication.md

Bytes that one layer hands from rank to rank for each token of the prompt, all ranks together, with
P ranks, e bytes an element and hidden states of M elements:

    sequence parallel   e D (2 Hq + 2 C) (P − 1) / P               q, k, v to heads; output back
    tensor parallel     e M · 2 · 2 (P − 1)                        two all-reduces around a ring

C are the kv heads that the ranks hold, copies counted: max(Hkv, P) where one of Hkv and P is a
multiple of the other, a few more where a kv head's query heads lie on several ranks.

All sizes are those of tensors that must exist at once; what a framework keeps beside them is not
on paper.
"""

from dataclasses import dataclass

from anchor_models.backend import TAIL
from anchor_models.memory import choice_bytes
from anchor_models.parallel.ulysses import split_heads
from anchor_ref.config import AnchorConfig
from anchor_ref.measure import identification_cost
from anchor_ref.regions import causal_pairs, groups

GIB = 2**30
MODES = ("sequence", "tensor")
# Of an H100 SXM, as its maker states them: no program is faster.
PEAK = 989e12  # FLOP/s, bf16
LINK = 450e9  # bytes/s to the other GPUs of the host


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama that memory and communication depend on.

    Attributes:
        layers: number of layers.
        hidden: M, elements of a hidden state.
        intermediate: width of the MLP.
        q_heads, kv_heads, head_dim: Hq, Hkv, D.
        vocabulary: rows of the embedding.
        tied: does the output layer share the embedding's weights?
    """

    layers: int
    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False

    @classmethod
    def of(cls, config) -> "ModelShape":
        """The sizes in a transformers configuration of a Llama."""
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            q_heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            vocabulary=config.vocab_size,
            tied=config.tie_word_embeddings,
        )

    @property
    def matrices(self) -> int:
        """Parameters of the matrices of all layers, which do work for every token."""
        attention = self.hidden * self.head_dim * 2 * (self.q_heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embeddings(self) -> int:
        """Parameters of embedding and output layer."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def norms(self) -> int:
        """Parameters of the norms, whole on every rank."""
        return (2 * self.layers + 1) * self.hidden


LLAMA_8B = ModelShape(32, 4096, 14_336, 32, 8, 128, 128_256)


def bytes_sent(shape: ModelShape, mode: str, ranks: int, element: int = 2) -> float:
    """Bytes that one layer sends for each token, all ranks together; formulas above.

    Args:
        shape: of the model.
        mode: "sequence" or "tensor".
        ranks: P.
        element: e, bytes of one element.

    Raises:
        ValueError: `mode` is neither.
    """
    if mode == "tensor":
        return 4.0 * element * shape.hidden * (ranks - 1)
    if mode == "sequence":
        held = sum(map(len, split_heads(shape.q_heads, shape.kv_heads, ranks)[1]))
        heads = 2 * shape.q_heads + 2 * held
        return element * shape.head_dim * heads * (ranks - 1) / ranks
    raise ValueError(f"mode must be 'sequence' or 'tensor', got {mode!r}")


def memory(
    shape: ModelShape, mode: str, n: int, ranks: int, selected: float, element: int = 2
) -> dict[str, float]:
    """Bytes on a rank while a layer runs, by what they hold; the rank with the most heads.

    Args:
        shape, mode, ranks, element: as in `bytes_sent`.
        n: N, tokens of the prompt, a multiple of P.
        selected: share of the candidates that become stripes, in [0, 1].

    Returns:
        Of each part its bytes; "at once" is what stays through all layers and the larger of the
        two that take turns, attention and MLP.
    """
    tokens, weights = (n / ranks, 1) if mode == "sequence" else (n, ranks)
    shares = split_heads(shape.q_heads, shape.kv_heads, ranks)
    heads, kv_heads = (max(map(len, share)) for share in shares)  # of the rank with the most
    cached = shape.kv_heads / ranks if mode == "sequence" else kv_heads
    one_head = element * n * shape.head_dim
    layouts = 2 if mode == "sequence" and ranks > 1 else 1  # before and after an exchange
    stays = {
        "weights": element * ((shape.matrices + shape.embeddings) / weights + shape.norms),
        "keys and values of all layers": 2 * shape.layers * cached * one_head,
        "hidden states, before and after a norm": 2 * element * shape.hidden * tokens,
    }
    attention = {
        "q, k, v and output of one layer": layouts * 2 * (heads + kv_heads) * one_head,
        "sent and received at once": (layouts - 1) * 2 * heads * one_head,
        "anchors, and sums of weights": 8 * n * heads,
        "mean queries and lists of stripes": heads
        * choice_bytes(n, shape.head_dim, selected, AnchorConfig()),
        "candidates' part of the tail's rows": heads
        * min(TAIL, n)
        * (element * shape.head_dim + 4),
    }
    mlp = {"gate and up of the MLP": 2 * element * shape.intermediate * n / ranks}
    at_once = sum(stays.values()) + max(sum(attention.values()), sum(mlp.values()))
    return {**stays, **attention, **mlp, "at once": at_once}


def work(shape: ModelShape, n: int, selected: float) -> dict[str, float]:
    """FLOP of the whole prompt, all ranks together; its last `TAIL` rows see every key.

    Args:
        shape: of the model.
        n: N, tokens of the prompt.
        selected: share of the candidates that become stripes, in [0, 1].
    """
    config = AnchorConfig(tail=TAIL)
    layout = groups(config, n, n)
    causal = causal_pairs(n)
    skipping = sum(len(group.candidates) * len(group.sparse_rows) for group in layout)
    dropped = (1 - selected) * skipping
    choosing = float(identification_cost(config, n, n))
    dense = 4 * shape.head_dim * shape.layers * shape.q_heads * causal
    return {
        "matrices": 2.0 * shape.matrices * n,
        "attention, dense": dense,
        "attention, anchor": dense * (1 - dropped / causal + choosing),
    }


def tables(n: int = 2**20, ranks: int = 8, selected: float = 0.05) -> str:
    """The tables of the page, as Markdown: an 8B Llama in bf16 on H100s."""
    held = [
        memory(LLAMA_8B, "sequence", n, 1, selected),
        *(memory(LLAMA_8B, mode, n, ranks, selected) for mode in MODES),
    ]
    sent = [LLAMA_8B.layers * bytes_sent(LLAMA_8B, mode, ranks) for mode in MODES]
    share = n / ranks
    lines = [
        f"| GiB on each GPU | 1 GPU | {ranks}, sequence parallel | {ranks}, tensor parallel |",
        "| --- | --- | --- | --- |",
        *(_row(part, [found[part] / GIB for found in held]) for part in held[0]),
        "",
        "| sent | sequence parallel | tensor parallel |",
        "| --- | --- | --- |",
        _row("a token and layer, all GPUs, KiB", [x / LLAMA_8B.layers / 1024 for x in sent]),
        _row("a token, all layers, all GPUs, KiB", [x / 1024 for x in sent]),
        _row("the prompt, each GPU, GiB", [x * share / GIB for x in sent]),
        _row("the same at 450 GB/s, s", [x * share / LINK for x in sent]),
        "",
        f"| work of the prompt | PFLOP | s on {ranks} GPUs |",
        "| --- | --- | --- |",
    ]
    for part, flop in work(LLAMA_8B, n, selected).items():
        lines.append(f"| {part} | {flop / 1e15:.1f} | {flop / ranks / PEAK:.2f} |")
    return "\n".join(lines) + "\n"


def _row(name: str, numbers: list[float]) -> str:
    return f"| {name} | " + " | ".join(f"{x:.2f}" for x in numbers) + " |"


if __name__ == "__main__":
    print(tables(), end="")

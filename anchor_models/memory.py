"""Memory that choosing the stripes takes, on paper: counted from the sizes alone."""

from anchor_ref.config import AnchorConfig
from anchor_ref.regions import groups


def choice_bytes(n: int, head_dim: int, selected: float, config: AnchorConfig) -> float:
    """Bytes for each head that stage 2 holds at once, in the kernels of this project.

        4 a stripe + 12 a list + 1/8 a candidate + 4 (D + 1) a block

    The last is a block's mean query and mean anchor, float32: 4·D/b + 4/b for each row. Bits are
    counted without what fills up the last chunk of each group. A call of few candidates holds 4
    bytes for each of them in place of 4 a stripe (`anchor_kernels.calls.ROOM`).

    Args:
        n: N, number of tokens, as many queries as keys, at least 1.
        head_dim: D.
        selected: share of the candidates that become stripes, in [0, 1].
        config: sizes; its θ plays no part.
    """
    layout = groups(config, n, n)
    candidates = sum(len(group.candidates) for group in layout)
    blocks = sum(len(group.blocks) for group in layout)
    lists = 4 * selected * candidates + 12 * len(layout) + candidates / 8
    return lists + 4 * (head_dim + 1) * blocks

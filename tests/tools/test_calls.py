"""One call beside kernels of dense attention: those measured, the fastest of them compared."""

from tools import calls


def row(part, method, way, n, ms, **more):
    made = {"part": part, "method": method, "way": way, "n": n, "ms": {"median": ms}, "run": 0}
    made |= {"q_heads": 32, "kv_heads": 8, "head_dim": 128, "density": 0.3, "status": "ok"}
    return made | more


def results():
    rows = []
    for n, ours, cudnn, other in ((8192, 2.0, 3.0, 2.5), (131_072, 20.0, 240.0, 200.0)):
        rows += [
            row("planted", "AnchorAttention", "tail 512", n, ours),
            row("planted", "AnchorAttention", "tail 0", n, ours / 2),
            row("planted", "dense", "cuDNN", n, cudnn),
            row("planted", "dense", "FlashAttention-4", n, other),
            row("planted", "dense", "FlashAttention-2", n, 1.0, status="failed"),
            row("planted", "AnchorAttention", "tail 512", n, 0.1, head_dim=64, density=0.9),
        ]
    at = {"source": "layer 15", "goal": "recall 0.95"}
    rows += [
        row("recall", "AnchorAttention", "tail 0", 32_768, 0.7, **at),
        row("recall", "XAttention", "FlashAttention-4", 32_768, 0.5, **at),
        row("recall", "dense", "SDPA", 32_768, 2.4, source="layer 15"),
    ]
    settings = {"device": "GPU", "torch": "2", "triton": "3", "kernels": "abc"}
    return {"settings": settings, "runs": [{"date": "2026-01-01"}], "rows": rows}


def test_the_table_has_each_kernel_of_the_first_shape():
    said = calls.kernels(results(), "../")
    assert "| 8\u202f192 | 30 % | 2 ms | 3 ms | – | 2.5 ms | 1.2 |" in said
    assert "| 131\u202f072 | 30 % | 20 ms | 240 ms | – | 200 ms | 10.0 |" in said
    assert "One call, GPU, 2026-01-01, torch 2, Triton 3, kernels abc;" in said
    assert "32 query and 8 kv heads of 128" in said
    assert "](../results/side_by_side/side_by_side.md)" in said


def test_the_sentence_has_both_ends_and_the_others_at_equal_recall():
    said = calls.calls(results())
    assert "1.2 times as fast at 8\u202f192 tokens, 10.0 at 131\u202f072." in said
    assert "At equal recall 0.95 on a real layer (layer 15, 32768 tokens)" in said
    assert "XAttention 0.5 ms, AnchorAttention 0.7 ms, dense 2.4 ms" in said

"""Does the bundled model really attend? Every number of the model card is made here.

    python -m anchor_lab model --corpus books.jsonl.xz --out results/model

Retrieval is scored with the answer in place (teacher forcing): an answer is right when every digit
is the most likely next token, which is what greedy decoding would have produced.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from anchor_lab.analysis.intervals import wilson
from anchor_models.bundled import bundled_model_path
from anchor_models.capture import Captured, capture_qkv
from anchor_models.interface import replaced_attention
from anchor_ref import AnchorConfig, anchor_attention
from anchor_ref.heads import attention_scores, causal_scores
from anchor_ref.measure import density, recall
from training.corpus import Corpus, load_corpus
from training.tasks import ANSWER, BOS, NOTHING, Tasks

LENGTHS = (1024, 2048, 4096, 8192, 16384)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
THETAS = (6, 7, 8, 9, 10, 11, 12, 13, 14)
LOCAL = 128  # keys counted as "window" in the head statistics, the row's own included


class Needles:
    """Prompts on held-out books with held-out key words; each an array of tokens with kinds."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, seed: int):
        self.tasks = Tasks(corpus.validation, tokenizer, seed, held_out=True)

    def prompt(
        self, length: int, depth: float, keys: int, questions: int, *, needle: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Text of `length` tokens with `keys` facts and then `questions` questions with answers.

        The fact asked for first stands at `depth`, the others anywhere. Without `needle` that
        fact is left out.
        """
        tasks = self.tasks
        names = tasks.keys(keys)
        values = [tasks.number()[:5] for _ in names]
        inserts = []
        for n in range(keys):
            place = depth if n == 0 else tasks.rng.random()
            before, after = tasks.statements[tasks.rng.integers(len(tasks.statements))]
            if n or needle:
                inserts.append((place, tasks._fact(before, names[n], values[n], after, NOTHING)))
        tail = [part for n in range(questions) for part in tasks.asked(names[n], values[n])]
        used = sum(len(tokens) for tokens, _ in tail)
        row = tasks._scatter(inserts, length - used)
        tokens = np.concatenate([row.tokens, *(tokens for tokens, _ in tail)])
        kinds = np.concatenate([row.kinds, *(np.full(len(t), kind) for t, kind in tail)])
        return tokens, kinds


class Evaluation:
    """One model, one corpus, and what to ask of them."""

    def __init__(self, model, tokenizer: Tokenizer, corpus: Corpus, seed: int = 0):
        self.model, self.tokenizer, self.corpus, self.seed = model, tokenizer, corpus, seed
        self.device = next(model.parameters()).device
        sizes = sum(len(book) for book in corpus.validation)
        self.bytes_per_token = sum(corpus.validation_bytes) / sizes

    def _tensor(self, tokens: np.ndarray) -> Tensor:
        return torch.from_numpy(tokens.astype(np.int64)).to(self.device)

    @torch.no_grad()
    def text(self, length: int, windows: int) -> dict:
        """Bits per byte on held-out books, and loss by position in nats a token."""
        tasks = Tasks(self.corpus.validation, self.tokenizer, self.seed)
        losses = torch.zeros(length, dtype=torch.float64, device=self.device)
        for _ in range(windows):
            row = self._tensor(tasks.book(length + 1).tokens)
            logits = self.model(row[None, :-1], use_cache=False).logits[0]
            losses += F.cross_entropy(logits.float(), row[1:], reduction="none")
        losses /= windows
        edges = [0, 512, 2048, 8192, 16384, 32768]
        by_position = {
            f"{a}-{b}": losses[a:b].mean().item() for a, b in pairwise(edges) if b <= length
        }
        bits = losses.mean().item() / np.log(2) / self.bytes_per_token
        return {
            "length": length,
            "windows": windows,
            "device": str(self.device),
            "bits_per_byte": bits,
            "nats": by_position,
        }

    @torch.no_grad()
    def induction(self, length: int, rows: int = 4) -> float:
        """Share of the tokens of a repeated random block that are predicted, any distance."""
        tasks = Tasks(self.corpus.validation, self.tokenizer, self.seed)
        right = scored = 0
        for _ in range(rows):
            block = tasks.random_tokens(min(length // 4, 512))
            gap = tasks.text(length - 1 - 2 * len(block))
            at = int(tasks.rng.integers(len(gap)))
            tokens = np.concatenate([[BOS], gap[:at], block, gap[at:], block])
            logits = self.model(
                self._tensor(tokens)[None], use_cache=False, logits_to_keep=len(block)
            ).logits[0]
            found = logits[:-1].argmax(-1) == self._tensor(block)[1:]
            right, scored = right + int(found.sum()), scored + len(found)
        return right / scored

    @torch.no_grad()
    def needles(
        self,
        length: int,
        depth: float,
        keys: int,
        questions: int,
        trials: int,
        *,
        needle: bool = True,
        shuffled: bool = False,
    ) -> tuple[int, int]:
        """(answers right, answers asked). `shuffled` scores against another prompt's answer."""
        needles = Needles(
            self.corpus, self.tokenizer, seed=hash((length, round(4 * depth), keys)) % 2**32
        )
        right = 0
        previous = None
        at_once = max(1, min(trials, 65_536 // length))
        prompts = [
            needles.prompt(length, depth, keys, questions, needle=needle) for _ in range(trials)
        ]
        for start in range(0, trials, at_once):
            batch = prompts[start : start + at_once]
            tokens = self._tensor(np.stack([tokens for tokens, _ in batch]))
            keep = length - min(int((kinds == ANSWER).argmax()) for _, kinds in batch) + 1
            best = self.model(tokens, use_cache=False, logits_to_keep=keep).logits.argmax(-1)
            for row, said, (_, kinds) in zip(tokens, best, batch, strict=True):
                wanted = np.flatnonzero(kinds == ANSWER).reshape(questions, -1)
                for digits in wanted:
                    truth = row[digits]
                    given = said[digits - 1 - (length - keep)]
                    if shuffled:
                        truth, previous = previous, truth
                    right += int(truth is not None and bool((given == truth).all()))
        return right, trials * questions

    @torch.no_grad()
    def heads(self, length: int) -> list[dict]:
        """What each head does on held-out text, on a repeated block and on a needle prompt."""
        tasks = Tasks(self.corpus.validation, self.tokenizer, self.seed)
        text = self._tensor(tasks.book(length).tokens)[None]
        block = tasks.random_tokens(length // 2)
        repeated = self._tensor(np.concatenate([[BOS], block, block])[:length])[None]
        needles = Needles(self.corpus, self.tokenizer, self.seed)
        asked, kinds = needles.prompt(length, 0.4, 1, 1)
        rows = []
        for layer in range(self.model.config.num_hidden_layers):
            on_text = self._capture(text, layer)
            table = head_statistics(on_text)
            table["induction"] = _mass_at(self._capture(repeated, layer), _induction_pairs(length))
            pairs = _needle_pairs(asked, kinds)
            table["needle"] = _mass_at(self._capture(self._tensor(asked)[None], layer), pairs)
            q, k = on_text.q, on_text.k
            for theta in THETAS:
                config = AnchorConfig(theta=theta)
                _, trace = anchor_attention(q, k, on_text.v, config, return_trace=True)
                kept = recall(q, k, trace.stripes, config)[0].double()
                table[f"recall@{theta}"] = kept.mean(-1)
                table[f"recall_p10@{theta}"] = kept.quantile(0.1, dim=-1)
                table[f"density@{theta}"] = density(trace.stripes, config, length, length)[0]
            for head in range(q.shape[1]):
                row = {name: round(float(values[head]), 5) for name, values in table.items()}
                rows.append({"length": length, "layer": layer, "head": head, **row})
        return rows

    def _capture(self, tokens: Tensor, layer: int) -> Captured:
        found = capture_qkv(self.model, tokens, [layer], dtype=torch.float32)[layer]
        return Captured(*(x.to(self.device) for x in (found.q, found.k, found.v)), found.scaling)


def head_statistics(captured: Captured) -> dict[str, Tensor]:
    """Where the mass and the maxima of each head lie, `[Hq]` each, rows of the second half.

    sink: mass on key 0. initial: on the first 128 keys. local: on the last 128 keys, the row's own
    included. max_initial, max_local, max_window: share of rows whose largest score lies in the
    first 128 keys, the last 128, and the group's window (a row counts once, in that order for the
    first two). entropy: in nats, over log of the number of keys.
    """
    q, k = captured.q, captured.k
    heads, length, size = q.shape[1], q.shape[2], AnchorConfig().group_size
    names = ("sink", "initial", "local", "max_initial", "max_local", "max_anchor", "entropy")
    sums = {name: torch.zeros(heads, dtype=torch.float64, device=q.device) for name in names}
    chunk = 256
    for start in range(length // 2, length, chunk):
        rows = torch.arange(start, min(start + chunk, length), device=q.device)[:, None]
        keys = torch.arange(int(rows[-1]) + 1, device=q.device)
        q_rows = q[:, :, start : start + chunk]
        scores = causal_scores(q_rows, k[:, :, : len(keys)], captured.scaling)[0]
        mass = scores.softmax(-1)  # [Hq, chunk, keys]
        best = scores.argmax(-1)
        near = keys > rows - LOCAL
        sums["sink"] += mass[..., 0].sum(-1)
        sums["initial"] += mass[..., :LOCAL].sum((-2, -1))
        sums["local"] += (mass * near).sum((-2, -1))
        in_initial, in_local = best < LOCAL, best > rows[:, 0] - LOCAL
        sums["max_initial"] += in_initial.sum(-1)
        sums["max_local"] += (in_local & ~in_initial).sum(-1)
        sums["max_anchor"] += (in_initial | (best >= rows[:, 0] // size * size)).sum(-1)
        entropy = -(mass * mass.clamp(min=1e-30).log()).sum(-1)
        sums["entropy"] += (entropy / (rows[:, 0] + 1).log()).sum(-1)
    return {name: total / (length - length // 2) for name, total in sums.items()}


def _induction_pairs(length: int) -> list[tuple[int, int]]:
    """(row, key): a token of the second copy, and the token that followed it in the first."""
    half = length // 2
    return [(half + 1 + i, 2 + i) for i in range(64, half - 2, 7)]


def _needle_pairs(tokens: np.ndarray, kinds: np.ndarray) -> list[tuple[int, int]]:
    """(row, key): where a digit is about to be said, and that digit in the fact."""
    digits = np.flatnonzero(kinds == ANSWER)
    value = tokens[digits]
    starts = [
        i for i in range(digits[0] - len(value)) if (tokens[i : i + len(value)] == value).all()
    ]
    return [(int(row) - 1, starts[0] + n) for n, row in enumerate(digits)]


def _mass_at(captured: Captured, pairs: list[tuple[int, int]]) -> Tensor:
    """Mean attention mass of each head on the given (row, key) pairs, `[Hq]`."""
    q, k = captured.q, captured.k
    total = torch.zeros(q.shape[1], dtype=torch.float64, device=q.device)
    for start in range(0, len(pairs), 128):
        rows, keys = torch.tensor(pairs[start : start + 128], device=q.device).T
        scores = attention_scores(q[:, :, rows], k, captured.scaling)[0]
        later = torch.arange(k.shape[2], device=q.device) > rows[:, None]
        mass = scores.masked_fill(later, -torch.inf).softmax(-1)
        total += mass[:, torch.arange(len(rows), device=q.device), keys].sum(-1)
    return total / len(pairs)


def anchored(
    config: AnchorConfig,
    heads: Collection[tuple[int, int]] | None = None,
    densities: list[float] | None = None,
) -> Callable:
    """AnchorAttention in the given (layer, head)s, for `replaced_attention`.

    Args:
        config: of AnchorAttention.
        heads: where it runs, dense attention elsewhere; None means everywhere.
        densities: gets the mean density of the sparse heads of each call, when given.
    """

    def make(original):
        def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
            layer, n_heads = module.layer_idx, query.shape[1]
            sparse = [h for h in range(n_heads) if heads is None or (layer, h) in heads]

            def dense():
                return original(
                    module, query, key, value, attention_mask, scaling=scaling, **kwargs
                )

            if not sparse:
                return dense()
            out, trace = anchor_attention(query, key, value, config, scaling, return_trace=True)
            out = out.transpose(1, 2)  # [B, N, Hq, D], as the interface wants it
            if densities is not None:
                share = density(trace.stripes, config, query.shape[2], key.shape[2])
                densities.append(float(share[:, sparse].mean()))
            if len(sparse) < n_heads:
                mixed = dense()[0].clone()
                mixed[:, :, sparse] = out[:, :, sparse]
                out = mixed
            return out.contiguous(), None

        return attention

    return make


def role(row: dict) -> str:
    """What a head does, by its measurements: the first of these that holds.

    retrieval: at least half of its mass on the digit that is about to be said; induction: a fifth
    on the token that followed last time; sink: 0.3 on key 0; local: half on the last 128 keys;
    diffuse: entropy at least 0.8 of the largest possible; else mixed.
    """
    for name, holds in (
        ("retrieval", row["needle"] >= 0.5),
        ("induction", row["induction"] >= 0.2),
        ("sink", row["sink"] >= 0.3),
        ("local", row["local"] >= 0.5),
        ("diffuse", row["entropy"] >= 0.8),
    ):
        if holds:
            return name
    return "mixed"


def write_tables(results: dict, folder: Path) -> None:
    """The evaluation as tables: needles.csv, heads.csv with the role of each head, causes.csv."""
    heads = [
        {**row, "role": role(row)}
        for name in results
        if name.startswith("heads_")
        for row in results[name]
    ]
    with_anchor = [{**cell, "attention": "anchor, θ = 12"} for cell in results["anchor"]]
    dense = [
        {**cell, "attention": "dense"} for cell in (*results["needles"], *results["controls"])
    ]
    columns = ("attention", "task", "length", "depth", "accuracy", "low", "high", "prompts")
    cells = [
        (cell["attention"], cell["task"], cell["length"], depth, share, *wilson_of(share, n), n)
        for cell in (*dense, *with_anchor)
        for n in (cell["asked"] // len(cell["by_depth"]),)
        for depth, share in cell["by_depth"].items()
    ]
    with (folder / "needles.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *cells])
    names = ("sparse", "task", "length", "accuracy", "density", "asked")
    for name, rows, fields in (
        ("heads.csv", heads, tuple(heads[0])),
        ("causes.csv", results["causes"], names),
    ):
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, fields, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def wilson_of(share: float, asked: int) -> tuple[float, float]:
    low, high = wilson(share, asked)
    return round(low, 4), round(high, 4)


def gallery(rows: list[dict]) -> dict[str, dict]:
    """One head for each of the things heads do, chosen by measurement alone."""

    def best(score):
        row = max(rows, key=score)
        return {name: row[name] for name in row if "@" not in name}

    return {
        "sink": best(lambda row: row["sink"]),
        "local": best(lambda row: row["local"]),
        "induction": best(lambda row: row["induction"]),
        "retrieval": best(lambda row: row["needle"]),
        "diffuse": best(lambda row: row["entropy"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=bundled_model_path())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--anchor-trials", type=int, default=20, help="a depth, for each method")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    parser.add_argument("--only", nargs="+", help="parts to make anew; the others are kept")
    options = parser.parse_args()
    import transformers
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer_file = options.model / "tokenizer.json"
    corpus = load_corpus(options.corpus, tokenizer_file, processes=8)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(device).eval()
    evaluation = Evaluation(model, tokenizer, corpus)
    untrained = AutoModelForCausalLM.from_config(model.config).to(device, dtype).eval()
    options.out.mkdir(parents=True, exist_ok=True)
    lengths = [length for length in LENGTHS if length <= options.longest]
    file = options.out / "evaluation.json"
    kept = json.loads(file.read_text()) if options.only and file.exists() else {}
    results: dict = kept or {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "dtype": str(dtype),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "corpus_sha256": corpus.sha256,
        "trials": options.trials,
        "anchor_trials": options.anchor_trials,
        "seconds": {},
    }

    def record(name: str, make: Callable):
        if options.only and name not in options.only:
            return
        started = time.perf_counter()
        results[name] = make()
        results["seconds"][name] = round(time.perf_counter() - started, 1)
        text = json.dumps(results, indent=1)
        file.write_text(text + "\n")
        print(f"{name}: {results['seconds'][name]} s", flush=True)

    def cell(
        task: str,
        keys: int,
        questions: int,
        length: int,
        trials: int,
        depths: Sequence[float] = DEPTHS,
        **more,
    ) -> dict:
        counts = {
            str(depth): evaluation.needles(length, depth, keys, questions, trials, **more)
            for depth in depths
        }
        right, asked = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
        return {
            "task": task,
            "length": length,
            "accuracy": right / asked,
            "interval": wilson(right / asked, asked),
            "asked": asked,
            "by_depth": {depth: right / asked for depth, (right, asked) in counts.items()},
        }

    tasks = (("single", 1, 1), ("four keys", 4, 1), ("multi-query", 4, 4))
    record("text", lambda: evaluation.text(lengths[-1], 32))
    record("needles", lambda: [cell(*t, n, options.trials) for t in tasks for n in lengths])
    record("heads_2048", lambda: evaluation.heads(2048))
    record("induction", lambda: {str(n): evaluation.induction(n) for n in lengths})

    def controls() -> list[dict]:
        short = 2048
        rows = [
            cell("needle removed", 1, 1, short, options.trials, needle=False),
            cell("shuffled value", 1, 1, short, options.trials, shuffled=True),
        ]
        evaluation.model = untrained
        rows.append(cell("untrained weights", 1, 1, short, options.trials))
        evaluation.model = model
        return rows

    def with_anchor() -> list[dict]:
        rows = []
        for task in tasks[:2]:
            for length in lengths:
                dense = cell(*task, length, options.anchor_trials)
                with replaced_attention(model, anchored(AnchorConfig())):
                    anchor = cell(*task, length, options.anchor_trials)
                rows.append({**anchor, "dense_accuracy": dense["accuracy"]})
        return rows

    def causes() -> list[dict]:
        """What it takes to lose, or keep, a needle beyond initial region and window."""
        length = min(8192, lengths[-1])
        table = results[f"heads_{lengths[-1]}"]
        every = {(row["layer"], row["head"]) for row in table}
        retrieval = {(row["layer"], row["head"]) for row in table if row["needle"] >= 0.5}
        cases = [
            ("every head", AnchorConfig(), every),
            ("all but the retrieval heads", AnchorConfig(), every - retrieval),
            ("the retrieval heads alone", AnchorConfig(), retrieval),
        ]
        for layer in sorted({layer for layer, _ in every}):
            own = {head for head in every if head[0] == layer}
            cases.append((f"layer {layer} alone", AnchorConfig(), own))
        for theta in (16.0, 20.0, 24.0):
            cases.append((f"every head, θ = {theta:g}", AnchorConfig(theta=theta), every))
        for block in (32, 8):
            # Groups and initial region as before: only fewer queries are pooled into one.
            config = AnchorConfig(block, 2048 // block, init_blocks=128 // block)
            cases.append((f"every head, blocks of {block}", config, every))
        rows = []
        for name, config, heads in cases:
            densities: list[float] = []
            with replaced_attention(model, anchored(config, heads, densities)):
                found = cell("single", 1, 1, length, options.trials, depths=(0.25, 0.5))
            share = float(np.mean(densities))
            rows.append({**found, "sparse": name, "density": share})
            print(f"  {name}: {found['accuracy']:.2f} at density {share:.2f}", flush=True)
        return rows

    record("controls", controls)
    record("anchor", with_anchor)
    if lengths[-1] > 2048:
        record(f"heads_{lengths[-1]}", lambda: evaluation.heads(lengths[-1]))
    record("gallery", lambda: gallery(results[f"heads_{lengths[-1]}"]))
    record("causes", causes)

    def beyond() -> dict:
        """Twice the longest length: is it tolerated?"""
        length = 2 * lengths[-1]
        return {
            **evaluation.text(length, 1),
            "single": cell("single", 1, 1, length, min(options.trials, 10), depths=(0.25, 0.75)),
        }

    record("beyond", beyond)
    write_tables(results, options.out)


if __name__ == "__main__":
    main()

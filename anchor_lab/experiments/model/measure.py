"""Does the bundled model really attend? Every number of the model card is made here.

    python -m anchor_lab model --corpus books.jsonl.xz

Of other weights, with the log of their training, into a file and a card of their own:

    python -m anchor_lab model --corpus books.jsonl.xz --model training/runs/export \\
        --log training/runs/full/log.jsonl --out training/runs/evaluation.json

Retrieval is scored with the answer in place (teacher forcing): an answer is right when every digit
is the most likely next token, which is what greedy decoding would have produced. A part that is in
the file is not measured again, unless --again names it. A quarter of an hour on an H200.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor

from anchor_lab.analysis.curves import theta_curve
from anchor_lab.analysis.intervals import wilson
from anchor_lab.experiments.environment import environment
from anchor_lab.experiments.model.heads import (
    POOLED,
    RETRIEVES,
    anchored,
    head_statistics,
    induction_pairs,
    needle_differences,
    pooled_config,
    scores_at,
)
from anchor_lab.experiments.model.prompts import answered_as, needle_pairs, needle_prompt
from anchor_lab.experiments.retrieval.score import retrieval_accuracy
from anchor_lab.experiments.store import Store
from anchor_models.books import bytes_per_token, encode_books, read_books
from anchor_models.bundled import bundled_model_path
from anchor_models.capture import Captured, capture_qkv
from anchor_models.rows import BOS, Rows
from anchor_ref import AnchorConfig

TASKS = {"single": (1, 1), "four keys": (4, 1), "multi-query": (4, 4)}  # facts, questions
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
THETAS = tuple(range(6, 15))
SHORT = 2048  # length of the controls
EDGES = (0, 512, 2048, 8192, 16_384, 32_768)  # of the positions whose loss is told apart
TOKENS = 65_536  # in one prefill
KEY = ("part", "task", "sparse", "length", "layer", "head")


@dataclass(frozen=True)
class Sizes:
    """How much is asked.

    Attributes:
        lengths: tokens of the prompts, ascending.
        trials: prompts for each cell and depth.
        anchor_trials: the same where AnchorAttention runs.
        windows: of held-out text.
        prompts: for the differences.
    """

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16_384)
    trials: int = 50
    anchor_trials: int = 20
    windows: int = 32
    prompts: int = 10


QUICK = Sizes((512,), 2, 1, 1, 1)


def options(parser: argparse.ArgumentParser) -> None:
    """--corpus, --model, --log, --trials, --anchor-trials, --longest, --again"""
    log_file = Path("training/logs/full.jsonl")
    parser.add_argument("--corpus", type=Path, help="folder of .txt, or .jsonl.xz; to measure")
    parser.add_argument("--model", type=Path, default=bundled_model_path(), help="folder")
    parser.add_argument("--log", type=Path, default=log_file, help="of its training")
    parser.add_argument("--trials", type=int, help="prompts a depth")
    parser.add_argument("--anchor-trials", type=int, help="the same with AnchorAttention")
    parser.add_argument("--longest", type=int, help="tokens of the longest prompts")
    parser.add_argument("--again", nargs="+", choices=PARTS, default=[], help="to measure anew")


def measure(options: argparse.Namespace) -> int:
    """Every part that is missing; returns the exit status."""
    if options.corpus is None:
        print("anchor_lab model needs --corpus, the books that were held out", file=sys.stderr)
        return 2
    sizes = QUICK if options.quick else Sizes()
    longest = options.longest or sizes.lengths[-1]
    sizes = replace(
        sizes,
        lengths=tuple(length for length in sizes.lengths if length <= longest),
        trials=options.trials or sizes.trials,
        anchor_trials=options.anchor_trials or sizes.anchor_trials,
    )
    evaluation = Evaluation(options.model, options.corpus, sizes, options.device)
    weights = (options.model / "model.safetensors").read_bytes()
    settings = {
        "model_sha256": hashlib.sha256(weights).hexdigest(),
        "corpus_sha256": evaluation.corpus_sha256,
        "log": options.log.as_posix(),
        **asdict(sizes),
    }
    run = environment(options.device, ("torch", "transformers"))
    run |= {"dtype": str(evaluation.model.dtype), "seconds": {}}
    evaluation.store = store = Store(options.out, KEY, settings, run)
    for part, find in PARTS.items():
        if part in options.again or not part_of(store.rows, part):
            started = time.perf_counter()
            rows = find(evaluation)
            run["seconds"][part] = round(time.perf_counter() - started, 1)
            store.add({"part": part, **row} for row in rows)
            print(f"{part}: {run['seconds'][part]} s", flush=True)
    return 0


def part_of(rows: Sequence[dict], part: str) -> list[dict]:
    """The rows of one part."""
    return [row for row in rows if row["part"] == part]


class Evaluation:
    """One model and the books it never saw, and what to ask of them; each part gives rows.

    Attributes:
        store: where the rows of the parts before are.
    """

    store: Store

    def __init__(self, path: Path, corpus: Path, sizes: Sizes, device: str):
        from tokenizers import Tokenizer

        self.path, self.sizes, self.device = path, sizes, device
        self.longest = sizes.lengths[-1]
        self.model = self.load(torch.float32 if device == "cpu" else torch.bfloat16)
        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        books = read_books(corpus)
        self.corpus_sha256 = books.sha256
        self.books = encode_books(self.tokenizer, books.held_out)
        self.bytes_per_token = bytes_per_token(books.held_out, self.books)

    def load(self, dtype: torch.dtype):
        """The model, ready for inference."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=dtype)
        return model.to(self.device).eval()

    def rows(self, seed: int = 0, held_out: bool = False) -> Rows:
        return Rows(self.books, self.tokenizer, seed, held_out)

    def text(self) -> list[dict]:
        return [self.loss(self.longest, self.sizes.windows)]

    @torch.no_grad()
    def loss(self, length: int, windows: int) -> dict:
        """Bits per byte on held-out books, and loss by position in nats a token."""
        rows = self.rows()
        losses = torch.zeros(length, dtype=torch.float64, device=self.device)
        for _ in range(windows):
            tokens = rows.book(length + 1).tokens.long().to(self.device)
            logits = self.model(tokens[None, :-1], use_cache=False).logits[0]
            losses += F.cross_entropy(logits.float(), tokens[1:], reduction="none") / windows
        return {
            "length": length,
            "windows": windows,
            "bits_per_byte": losses.mean().item() / log(2) / self.bytes_per_token,
            "nats": {
                f"{a}-{b}": losses[a:b].mean().item() for a, b in pairwise(EDGES) if b <= length
            },
        }

    def needles(self) -> list[dict]:
        trials = self.sizes.trials
        return [self.cell(task, n, trials) for task in TASKS for n in self.sizes.lengths]

    def cell(
        self,
        task: str,
        length: int,
        trials: int,
        depths: Sequence[float] = DEPTHS,
        *,
        needle: bool = True,
        shuffled: bool = False,
    ) -> dict:
        """Share of the answers that are right, over all depths and at each.

        Args:
            task: of `TASKS`.
            length: of each prompt, tokens.
            trials: prompts for each depth.
            depths: where the fact asked for first stands, shares of the text.
            needle: whether that fact is told.
            shuffled: score against the answer of another prompt.
        """
        facts, questions = TASKS[task]
        found = {}
        for depth in depths:
            rows = self.rows(hash((length, round(4 * depth), facts)) % 2**32, held_out=True)
            prompts = [
                needle_prompt(rows, length, depth, facts, questions, needle=needle)
                for _ in range(trials)
            ]
            if shuffled:
                prompts = [
                    answered_as(*two)
                    for two in zip(prompts, prompts[1:] + prompts[:1], strict=True)
                ]
            batch = max(1, TOKENS // length)
            found[str(depth)] = retrieval_accuracy(self.model, prompts, batch=batch)
        right, asked = (
            sum(getattr(x, name) for x in found.values()) for name in ("right", "asked")
        )
        return {
            "task": task,
            "length": length,
            "accuracy": right / asked,
            "interval": wilson(right / asked, asked),
            "asked": asked,
            "by_depth": {depth: x.right / x.asked for depth, x in found.items()},
        }

    @torch.no_grad()
    def induction(self) -> list[dict]:
        """Share of the tokens of a repeated random block that are predicted, any distance."""
        return [{"length": n, "share": self.repeated(n)} for n in self.sizes.lengths]

    def repeated(self, length: int, trials: int = 4) -> float:
        rows, right = self.rows(), []
        for _ in range(trials):
            block = rows.random_tokens(min(length // 4, 512))
            gap = rows.text(length - 1 - 2 * len(block))
            at = int(rows.rng.integers(len(gap)))
            tokens = torch.cat([torch.tensor([BOS]), gap[:at], block, gap[at:], block])
            logits = self.model(
                tokens[None].to(self.device), use_cache=False, logits_to_keep=len(block)
            ).logits[0]
            right.append(logits[:-1].argmax(-1).cpu() == block[1:])
        return torch.cat(right).double().mean().item()

    def controls(self) -> list[dict]:
        """What must fail."""
        length, trials, trained = min(SHORT, self.longest), self.sizes.trials, self.model
        removed = self.cell("single", length, trials, needle=False)
        shuffled = self.cell("single", length, trials, shuffled=True)
        self.model = self.untrained()
        untrained = self.cell("single", length, trials)
        self.model = trained
        return [
            {**removed, "task": "needle removed"},
            {**shuffled, "task": "shuffled value"},
            {**untrained, "task": "untrained weights"},
        ]

    def untrained(self):
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(self.model.config)
        return model.to(self.device, self.model.dtype).eval()

    def anchor(self) -> list[dict]:
        """AnchorAttention in every layer, beside dense attention on the same prompts."""
        rows = []
        for task in ("single", "four keys"):
            for length in self.sizes.lengths:
                dense = self.cell(task, length, self.sizes.anchor_trials)
                with anchored(self.model, AnchorConfig()):
                    found = self.cell(task, length, self.sizes.anchor_trials)
                rows.append({**found, "dense_accuracy": dense["accuracy"]})
        return rows

    def heads(self) -> list[dict]:
        lengths = sorted({min(SHORT, self.longest), self.longest})
        return [row for length in lengths for row in self.heads_at(length)]

    def heads_at(self, length: int) -> list[dict]:
        """What each head does on held-out text, on a repeated block and on a needle prompt."""
        rows = self.rows()
        text = rows.book(length).tokens
        block = rows.random_tokens(length // 2)
        repeated = torch.cat([torch.tensor([BOS]), block, block])[:length]
        asked = needle_prompt(self.rows(held_out=True), length, 0.4)
        captures = (self.capture(tokens) for tokens in (text, repeated, asked.tokens))
        found = []
        for layer, (on_text, on_repeated, on_asked) in enumerate(zip(*captures, strict=True)):
            table = head_statistics(on_text)
            table["induction"] = scores_at(on_repeated, induction_pairs(length))[1].mean(-1)
            table["needle"] = scores_at(on_asked, needle_pairs(asked))[1].mean(-1)
            thetas = [float(theta) for theta in THETAS]
            curve = theta_curve(on_text.q, on_text.k, AnchorConfig(), thetas, on_text.scaling)
            for theta, kept, share in zip(THETAS, curve.recall, curve.density, strict=True):
                table[f"recall@{theta}"] = kept[0].double().mean(-1)
                table[f"recall_p10@{theta}"] = kept[0].double().quantile(0.1, dim=-1)
                table[f"density@{theta}"] = share[0]
            for head in range(on_text.q.shape[1]):
                row = {name: round(float(values[head]), 5) for name, values in table.items()}
                found.append({"length": length, "layer": layer, "head": head, **row})
        return found

    def capture(self, tokens: Tensor, model=None) -> list[Captured]:
        """Every layer of one prompt, float32."""
        ids = tokens[None].long().to(self.device)
        found = capture_qkv(model or self.model, ids, dtype=torch.float32)
        return [captured.to(self.device) for captured in found.values()]

    def causes(self) -> list[dict]:
        """What it takes to lose, or keep, a needle beyond initial region and window."""
        length = min(8192, self.longest)
        table = [row for row in part_of(self.store.rows, "heads") if row["length"] == self.longest]
        every = {(row["layer"], row["head"]) for row in table}
        retrieval = {(row["layer"], row["head"]) for row in table if row["needle"] >= RETRIEVES}
        published = AnchorConfig()
        cases = [
            ("every head", published, every),
            ("all but the retrieval heads", published, every - retrieval),
            ("the retrieval heads alone", published, retrieval),
        ]
        for layer in sorted({layer for layer, _ in every}):
            own = {head for head in every if head[0] == layer}
            cases.append((f"layer {layer} alone", published, own))
        for theta in (16.0, 20.0, 24.0):
            cases.append((f"every head, θ = {theta:g}", replace(published, theta=theta), every))
        for size in (32, 8):
            cases.append((f"every head, blocks of {size}", pooled_config(size), every))
        rows = []
        for name, config, heads in cases:
            with anchored(self.model, config, heads) as densities:
                found = self.cell("single", length, self.sizes.anchor_trials, (0.25, 0.5))
            rows.append({**found, "sparse": name, "density": mean(densities or [1.0])})
        return rows

    def beyond(self) -> list[dict]:
        """Twice the longest length: is it tolerated?"""
        length, trials = 2 * self.longest, min(self.sizes.trials, 10)
        single = self.cell("single", length, trials, (0.25, 0.75))
        return [{**self.loss(length, 1), "single": single}]

    def differences(self) -> list[dict]:
        """Why needles are lost: how far they lie from the anchor, mean over prompts."""
        rows, model, trials = (
            self.rows(5, held_out=True),
            self.load(torch.float32),
            self.sizes.prompts,
        )
        sums: dict[tuple[int, str], Tensor] = {}
        for _ in range(trials):
            prompt = needle_prompt(rows, 2 * SHORT, 0.25)
            for layer, captured in enumerate(self.capture(prompt.tokens, model)):
                for name, found in needle_differences(captured, needle_pairs(prompt)).items():
                    sums[layer, name] = sums.get((layer, name), 0) + found / trials
        names = ("mass", "row", *(f"pooled_{size}" for size in POOLED))
        return [
            {"layer": layer, "head": head}
            | {name: round(float(sums[layer, name][head]), 3) for name in names}
            for layer in range(model.config.num_hidden_layers)
            for head in range(model.config.num_attention_heads)
        ]


# In this order: the causes are looked for in the heads.
PARTS: dict[str, Callable[[Evaluation], list[dict]]] = {
    part: getattr(Evaluation, part)
    for part in (
        "text",
        "needles",
        "induction",
        "controls",
        "anchor",
        "heads",
        "causes",
        "differences",
        "beyond",
    )
}

"""Train the bundled model.

    python -m training.train --corpus books.jsonl.xz --run training/runs/full --seconds 900

The schedule runs on a clock, not on a step count: whatever the hardware, the learning rate has
decayed when `--seconds` are over. `--pause-after` stops earlier and leaves a checkpoint; the same
command goes on from there.
"""

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from anchor_models.books import Books, bytes_per_token, encode_books, read_books
from anchor_models.rows import ANSWER, COPY, TEXT
from training.export import export
from training.model import Llama, ModelConfig, target_losses
from training.probes import Probes
from training.tasks import LATER, STAGE_0, Tasks


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum.

    Attributes:
        until: share of the time at which it ends.
        shapes: (length, rows) of successive steps, repeated.
        mix: shares of the tasks.
        rope_theta: base of the rotary frequencies; a low one lets induction form sooner.
        copy_weight: weight of the copy loss; text and answers weigh 1.
        gate: probes that must be reached to leave the stage, which may then end early.
        probe_length: length of the probes.
    """

    until: float
    shapes: tuple[tuple[int, int], ...]
    mix: dict[str, float]
    rope_theta: float
    copy_weight: float
    gate: dict[str, float]
    probe_length: int


@dataclass(frozen=True)
class Preset:
    """A model size with its curriculum."""

    model: ModelConfig
    stages: tuple[Stage, ...]
    probe_seconds: float


GATE = {"recall_pairs": 0.9, "copies": 0.5}
PRESETS = {
    # One data-centre GPU, about 15 minutes.
    "full": Preset(
        ModelConfig(),
        (
            Stage(0.25, ((256, 512),), STAGE_0, 10_000.0, 4.0, GATE, 256),
            Stage(0.58, ((2048, 128),), LATER, 500_000.0, 1.0, {}, 2048),
            Stage(0.80, ((8192, 32),) * 3 + ((2048, 128),), LATER, 500_000.0, 1.0, {}, 8192),
            Stage(
                1.00,
                ((16384, 16),) * 3 + ((2048, 128),) + ((16384, 16),) * 3 + ((32768, 8),),
                LATER,
                500_000.0,
                1.0,
                {},
                16384,
            ),
        ),
        probe_seconds=60,
    ),
    # Two CPU cores, about 45 minutes: a smaller model, shorter contexts.
    "cpu": Preset(
        ModelConfig(width=128, layers=4, q_heads=4, kv_heads=2, ffn=352),
        (
            Stage(0.30, ((128, 32),), STAGE_0, 10_000.0, 4.0, GATE, 256),
            Stage(0.60, ((512, 8),), LATER, 500_000.0, 1.0, {}, 512),
            Stage(1.00, ((1024, 4), (2048, 2)), LATER, 500_000.0, 1.0, {}, 2048),
        ),
        probe_seconds=180,
    ),
    # A minute on anything: shows that the script runs, teaches the model nothing.
    "smoke": Preset(
        ModelConfig(width=64, layers=2, q_heads=2, kv_heads=1, ffn=96),
        (
            Stage(0.3, ((128, 8),), STAGE_0, 10_000.0, 4.0, {}, 256),
            Stage(1.0, ((512, 4), (1024, 2)), LATER, 500_000.0, 1.0, {}, 1024),
        ),
        probe_seconds=10,
    ),
}


class Batches(IterableDataset):
    """Endless batches of one stage; every worker draws its own, steps are dealt out in turn."""

    def __init__(self, books: list[Tensor], tokenizer, stage: Stage, seed: int, first: int):
        self.books, self.tokenizer = books, tokenizer
        self.stage, self.seed, self.first = stage, seed, first

    def __iter__(self):
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        tasks = Tasks(self.books, self.tokenizer, hash((self.seed, self.first, number)) % 2**32)
        step = number
        while True:
            length, rows = self.stage.shapes[step % len(self.stage.shapes)]
            yield tasks.batch(self.stage.mix, length, rows)
            step += workers


class Run:
    """One training run: everything a checkpoint holds, and how a step is made."""

    def __init__(self, options: argparse.Namespace, books: Books, tokenizer: Tokenizer):
        self.options, self.tokenizer = options, tokenizer
        self.books = encode_books(tokenizer, books.train)
        self.preset = PRESETS[options.preset]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(options.seed)
        self.model = Llama(self.preset.model).to(self.device)
        hidden = [p for name, p in self.model.named_parameters() if "proj" in name]
        norms = [p for name, p in self.model.named_parameters() if p.ndim == 1]
        embedding = [self.model.model.embed_tokens.weight]
        self.optimizers = [
            torch.optim.Muon(hidden, lr=0.02, momentum=0.95, nesterov=True, weight_decay=0.1),
            torch.optim.AdamW(
                [
                    {"params": embedding, "weight_decay": 0.1},
                    {"params": norms, "weight_decay": 0.0},
                ],
                lr=3e-3,
                betas=(0.9, 0.95),
            ),
        ]
        self.peak_rates = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.stage, self.step, self.tokens, self.clock = 0, 0, 0, 0.0
        held_out = encode_books(tokenizer, books.held_out)
        per_token = bytes_per_token(books.held_out, held_out)
        self.probes = Probes(held_out, per_token, tokenizer, self.device)
        self.loss = target_losses
        if self.device == "cuda":
            # One graph for each length; eight layers may each ask for theirs.
            torch._dynamo.config.recompile_limit = 64
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)
            self.loss = torch.compile(target_losses, dynamic=False)

    def log(self, **entry) -> None:
        line = json.dumps({"clock": round(self.clock, 1), **entry})
        print(line, flush=True)
        with open(self.options.run / "log.jsonl", "a") as file:
            file.write(line + "\n")

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": (self.stage, self.step, self.tokens, self.clock),
        }
        partial = self.options.run / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.options.run / "checkpoint.pt")
        if self.options.export:
            export(self.model, self.options.tokenizer, self.options.export)

    def load(self) -> None:
        state = torch.load(self.options.run / "checkpoint.pt", map_location=self.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stage, self.step, self.tokens, self.clock = state["progress"]
        self.log(event="resumed", step=self.step, tokens=self.tokens)

    def rate(self) -> float:
        """Learning rate as a share of its peak: warm-up, constant, down over the last 35 %."""
        warm = min(1.0, (self.step + 1) / 60)
        left = 1 - self.clock / self.options.seconds
        return warm * max(0.05, min(1.0, left / 0.35))

    def update(self, tokens: Tensor, kinds: Tensor, copy_weight: float) -> Tensor:
        """One optimiser step; returns the mean loss of each kind."""
        tokens = tokens.to(self.device, non_blocking=True)
        kinds = kinds.to(self.device, non_blocking=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            losses = self.loss(self.model(tokens[:, :-1]), tokens[:, 1:].long(), kinds[:, 1:])
        (losses[TEXT] + losses[ANSWER] + copy_weight * losses[COPY]).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, peaks in zip(self.optimizers, self.peak_rates, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * self.rate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += tokens.numel()
        return losses.detach()

    def probe(self, stage: Stage) -> dict[str, float]:
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda")
        # Probes come in shapes of their own: not worth a compilation each.
        with autocast, torch.compiler.set_stance("force_eager"):
            found = self.probes(self.model, stage.probe_length)
        self.log(event="probe", stage=self.stage, length=stage.probe_length, **found)
        return found

    def train(self) -> bool:
        """Go on until the time is over; False when a stage ends with its gate unreached."""
        pause = min(self.options.pause_after or math.inf, self.options.seconds)
        started = time.perf_counter() - self.clock
        while self.stage < len(self.preset.stages) and self.clock < pause:
            stage = self.preset.stages[self.stage]
            self.model.rope_theta = stage.rope_theta
            batches = DataLoader(
                Batches(self.books, self.tokenizer, stage, self.options.seed, self.step),
                batch_size=None,
                num_workers=self.options.workers,
                pin_memory=self.device == "cuda",
                prefetch_factor=3 if self.options.workers else None,
            )
            logged = probed = self.clock
            tokens_then, first_step = self.tokens, self.step
            passed = not stage.gate
            for tokens, kinds in batches:
                losses = self.update(tokens, kinds, stage.copy_weight)
                if self.step % 20 == 0 or self.step - first_step <= 8:
                    text, answer, copy = (round(x, 4) for x in losses.tolist()[1:])
                    self.clock = time.perf_counter() - started
                    self.log(
                        stage=self.stage,
                        step=self.step,
                        shape=list(tokens.shape),
                        tokens=self.tokens,
                        tokens_per_second=round(
                            (self.tokens - tokens_then) / (self.clock - logged)
                        ),
                        rate=round(self.rate(), 4),
                        text=text,
                        answer=answer,
                        copy=copy,
                    )
                    logged, tokens_then = self.clock, self.tokens
                self.clock = time.perf_counter() - started
                every = self.preset.probe_seconds / (4 if stage.gate else 1)
                over = self.clock >= min(stage.until * self.options.seconds, pause)
                if over or self.clock - probed > every:
                    found = self.probe(stage)
                    passed = all(found[name] >= least for name, least in stage.gate.items())
                    self.save()
                    self.clock = probed = time.perf_counter() - started
                    if over or (stage.gate and passed):
                        break
            del batches
            if self.clock >= pause and self.clock < stage.until * self.options.seconds:
                break  # paused in the middle of a stage
            if not passed:
                self.log(event="gate not reached", stage=self.stage, gate=stage.gate)
                return False
            self.stage += 1
            self.save()
        return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder of .txt, or .jsonl.xz")
    parser.add_argument("--tokenizer", type=Path, default=Path("anchor_models/model"))
    parser.add_argument("--run", type=Path, required=True, help="folder for log and checkpoint")
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--seconds", type=float, default=900, help="length of the schedule")
    parser.add_argument("--pause-after", type=float, help="stop here, to go on later")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=max((os.cpu_count() or 2) - 2, 1))
    parser.add_argument("--export", type=Path, help="folder for the model, for transformers")
    options = parser.parse_args()
    options.run.mkdir(parents=True, exist_ok=True)
    # The tokenizer encodes books on all cores, and later, in the workers, one row at a time: a
    # fork in between does no harm.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    began = time.perf_counter()
    books = read_books(options.corpus)
    run = Run(options, books, Tokenizer.from_file(str(options.tokenizer / "tokenizer.json")))
    if (options.run / "checkpoint.pt").exists():
        run.load()
    run.log(
        event="start",
        preset=options.preset,
        seconds=options.seconds,
        seed=options.seed,
        parameters=sum(p.numel() for p in run.model.parameters()),
        train_tokens=sum(map(len, run.books)),
        corpus_sha256=books.sha256,
        device=torch.cuda.get_device_name() if run.device == "cuda" else "CPU",
        torch=str(torch.__version__),
        model=asdict(run.preset.model),
        loading_seconds=round(time.perf_counter() - began, 1),
    )
    good = run.train()
    run.save()
    run.log(event="end", step=run.step, tokens=run.tokens)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()

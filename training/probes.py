"""Quick looks during training: has the model learnt to look back?"""

from collections.abc import Sequence
from math import log
from statistics import mean

import torch
from torch import Tensor

from anchor_models.rows import ANSWER, COPY, TEXT
from training.model import Llama, target_losses
from training.tasks import Tasks


class Probes:
    """Accuracy on tasks drawn from held-out books with held-out key words, and bits per byte.

    Args:
        books: those held out, token ids of each.
        bytes_per_token: of these books.
        tokenizer: the model's.
        device: where the model is.
    """

    def __init__(self, books: Sequence[Tensor], bytes_per_token: float, tokenizer, device: str):
        self.books, self.bytes_per_token = books, bytes_per_token
        self.tokenizer, self.device = tokenizer, device

    def accuracy(self, model: Llama, task: str, length: int, rows: int, kind: int) -> float:
        """Share of the targets of that kind whose token is the most likely one."""
        tasks = Tasks(self.books, self.tokenizer, seed=1, held_out=True)
        tokens, kinds = (x.to(self.device) for x in tasks.batch({task: 1.0}, length, rows))
        scored = kinds[:, 1:] == kind
        right = [
            (model(row[None, :-1])[0].argmax(-1) == row[1:])[what]
            for row, what in zip(tokens, scored, strict=True)
        ]
        return torch.cat(right).double().mean().item()

    def bits_per_byte(self, model: Llama, length: int, rows: int) -> float:
        """Cross entropy of held-out book text in windows of `length` tokens."""
        tasks = Tasks(self.books, self.tokenizer, seed=2)
        tokens, kinds = (x.to(self.device) for x in tasks.batch({"book": 1.0}, length, rows))
        nats = [
            target_losses(model(row[None, :-1]), row[None, 1:].long(), what[None, 1:])[TEXT].item()
            for row, what in zip(tokens, kinds, strict=True)
        ]
        return mean(nats) / log(2) / self.bytes_per_token

    @torch.no_grad()
    def __call__(self, model: Llama, length: int) -> dict[str, float]:
        """All probes at one length."""
        rows = max(2, min(32, 32_768 // length))
        found = {
            "recall_pairs": self.accuracy(model, "recall_pairs", min(length, 256), 32, ANSWER),
            "copies": self.accuracy(model, "scattered_copies", length, rows, COPY),
            "bits_per_byte": self.bits_per_byte(model, length, rows),
        }
        if length >= 1024:
            found["needle_digits"] = self.accuracy(model, "needles", length, rows, ANSWER)
            found["key_value_digits"] = self.accuracy(model, "key_values", length, rows, ANSWER)
            found["variable_digits"] = self.accuracy(model, "variables", length, rows, ANSWER)
        return {name: round(value, 4) for name, value in found.items()}

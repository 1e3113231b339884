"""Quick looks during training: has the model learnt to look back?"""

import numpy as np
import torch
from torch import Tensor

from training.corpus import Corpus
from training.model import Llama, target_losses
from training.tasks import ANSWER, COPY, TEXT, Tasks


class Probes:
    """Accuracy on tasks drawn from held-out books with held-out key words, and bits per byte.

    Args:
        corpus: for its validation books.
        tokenizer: the model's.
        device: where the model is.
    """

    def __init__(self, corpus: Corpus, tokenizer, device: str):
        self.device, self.tokenizer, self.corpus = device, tokenizer, corpus
        tokens = sum(len(book) for book in corpus.validation)
        self.bytes_per_token = sum(corpus.validation_bytes) / tokens

    def accuracy(self, model: Llama, task: str, length: int, rows: int, kind: int) -> float:
        """Share of the targets of that kind whose token is the most likely one."""
        tasks = Tasks(self.corpus.validation, self.tokenizer, seed=1, held_out=True)
        tokens, kinds = tasks.batch({task: 1.0}, length, rows)
        tokens, kinds = as_tensors(tokens, kinds, self.device)
        right = scored = 0
        for row, what in zip(tokens, kinds, strict=True):
            found = model(row[None, :-1])[0].argmax(-1) == row[1:]
            right += int((found & (what[1:] == kind)).sum())
            scored += int((what[1:] == kind).sum())
        return right / scored

    def bits_per_byte(self, model: Llama, length: int, rows: int) -> float:
        """Cross entropy of held-out book text in windows of `length` tokens."""
        tasks = Tasks(self.corpus.validation, self.tokenizer, seed=2)
        tokens, kinds = as_tensors(*tasks.batch({"book": 1.0}, length, rows), self.device)
        nats = [
            target_losses(model(row[None, :-1]), row[None, 1:].long(), what[None, 1:])[TEXT].item()
            for row, what in zip(tokens, kinds, strict=True)
        ]
        return float(np.mean(nats)) / np.log(2) / self.bytes_per_token

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


def as_tensors(tokens: np.ndarray, kinds: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    """int32 tokens (torch has no uint16 embedding) and uint8 kinds on the device."""
    return (
        torch.from_numpy(tokens.astype(np.int32)).to(device),
        torch.from_numpy(kinds).to(device),
    )

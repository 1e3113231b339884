"""Train the byte-level BPE of the bundled model: 4096 entries, one token for each digit.

python -m training.tokenizer --corpus books.jsonl.xz --out anchor_models/model
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from anchor_models.books import read_books

SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")  # ids 0, 1, 2


def train_tokenizer(texts: list[str], vocabulary: int = 4096) -> Tokenizer:
    """Byte-level BPE whose alphabet holds all 256 bytes, so that any text can be encoded.

    Digits are split first: a number is as many tokens as it has digits, which makes "five digits
    copied exactly" one well-defined task.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = (line + "\n" for text in texts for line in text.split("\n"))
    tokenizer.train_from_iterator(lines, trainer)
    # Every sequence starts with <|bos|>, as in training: heads use that place as a sink.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path, longest: int = 32_768) -> None:
    """Write the two files that `AutoTokenizer` reads.

    The configuration is written by hand: transformers 5 would name a class that 4 does not know,
    and the name used here means the same to both.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    bos, eos, pad = SPECIAL
    about = {
        "bos_token": bos,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": longest,
        "pad_token": pad,
        "padding_side": "left",  # generation appends on the right
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    save_tokenizer(train_tokenizer(read_books(options.corpus).train), options.out)


if __name__ == "__main__":
    main()

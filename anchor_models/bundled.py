"""The small Llama that comes with the package, so that everything runs on real heads offline."""

from pathlib import Path

import torch

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def bundled_model_path() -> Path:
    """Folder with weights, configuration and tokenizer, for `from_pretrained`."""
    return Path(__file__).parent / "model"


def load_bundled(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"):
    """The bundled model, ready for inference, and its tokenizer; nothing is downloaded.

    Args:
        dtype: of the weights; they are stored in bfloat16.
        device: where to put them.

    Returns:
        (model, tokenizer), a `LlamaForCausalLM` in eval mode and a fast tokenizer that puts
        <|bos|> first.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: the installation lacks the model's files.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError("load_bundled needs transformers: pip install '.[models]'") from error
    path = bundled_model_path()
    if absent := [name for name in FILES if not (path / name).is_file()]:
        raise FileNotFoundError(
            f"the bundled model must lie in {path}, where {', '.join(absent)} cannot be found: "
            "install anchor-attention again"
        )
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a bar for 15 MiB would only clutter the notebooks
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.to(device).eval(), AutoTokenizer.from_pretrained(path, local_files_only=True)

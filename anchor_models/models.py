"""Any transformers causal model by one argument: bundled, SmolLM2, a folder, a name on the hub."""

import re
from pathlib import Path

import torch

from anchor_models.bundled import load_bundled
from anchor_models.interface import replaced_attention
from anchor_models.smollm2 import NAME as SMOLLM2
from anchor_models.smollm2 import smollm2_path

BUNDLED = "bundled"


def load_pretrained(
    name_or_path: str | Path | None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
):
    """A causal language model whose attention can be captured, and its tokenizer.

    Args:
        name_or_path: None or "bundled" for the model that comes with the package; "smollm2" for a
            real language model, fetched once, see `smollm2`; else a folder that `save_pretrained`
            wrote, or a name on the Hugging Face hub, taken from the local cache where it is there.
            A folder of that name comes before the hub.
        dtype: of the weights, a floating-point one.
        device: where to put them, as PyTorch names it.

    Returns:
        (model, tokenizer), the model in eval mode. No code that comes with a model is run.

    Raises:
        ImportError: transformers is not installed.
        OSError: there is no such folder, name, network, weights or tokenizer; see `smollm2_path`.
        ValueError: the folder holds no model, the model is no causal language model, lacks
            weights, or computes attention without transformers' AttentionInterface; `dtype` or
            `device` cannot be had.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    device = check_device(device)
    if name_or_path is None or name_or_path == BUNDLED:
        return load_bundled(dtype, device)
    try:
        from transformers import (
            MODEL_FOR_CAUSAL_LM_MAPPING,
            AutoConfig,
            AutoModelForCausalLM,
            AutoTokenizer,
        )
    except ImportError as error:
        raise ImportError("load_pretrained needs transformers: pip install '.[models]'") from error
    name = smollm2_path() if name_or_path == SMOLLM2 else _check_name(name_or_path)
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise OSError(
            f"model {name!r} must be {BUNDLED!r}, a folder, or a name on the Hugging Face hub "
            f"that is cached here or can be reached; it could not be read: {error}"
        ) from error
    two_parts = getattr(config, "is_encoder_decoder", False)
    if two_parts or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = f"encoder-decoder ({config.model_type})" if two_parts else repr(config.model_type)
        raise ValueError(f"model must be a causal language model, got {name!r} of type {kind}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise OSError(f"model {name!r} must come with a tokenizer, none was found") from error
    model, found = AutoModelForCausalLM.from_pretrained(
        name, config=config, dtype=dtype, output_loading_info=True
    )
    # transformers would draw them at random, and say so in a log alone.
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"model {name!r} must have all its weights, lacks {len(missing)}: "
            f"{', '.join(missing[:3])}{', ...' * (len(missing) > 3)}"
        )
    # Replaced by itself: what a capture would refuse is refused before a text is read.
    with replaced_attention(model, lambda original: original):
        pass
    return model.to(device).eval(), tokenizer


def _check_name(name_or_path: str | Path) -> str:
    """A folder with a configuration, or what may be a name on the hub."""
    name, folder = str(name_or_path), Path(name_or_path).expanduser()
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"model must be a folder with a config.json, found none in {folder}")
        return str(folder)
    if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise FileNotFoundError(
            f"model must be {BUNDLED!r}, a folder, or a name on the Hugging Face hub, got {name!r}"
        )
    return name


def check_device(device: str | torch.device) -> torch.device:
    """The device, once PyTorch has put an empty tensor on it.

    Raises:
        ValueError: PyTorch knows no such device, or has none here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    # Names that do not exist, and backends that this build or machine does not have.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device must be one that PyTorch has here, got {device!r}: {reason}"
        ) from error
    return found


def device_name(device: torch.device) -> str:
    """What results are said to come from: the name of a GPU, else the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

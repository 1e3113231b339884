"""The Llama that is trained: parameter names as in transformers, so that weights move over as is.

It exists because training wants what inference does not: one compiled block of fixed shape, logits
and loss in one place. A test makes sure that transformers computes the same logits from what
`export.py` writes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a Llama with tied embeddings; the defaults are those of the bundled model."""

    vocabulary: int = 4096
    width: int = 256
    layers: int = 8
    q_heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    ffn: int = 704
    rope_theta: float = 500_000.0
    max_positions: int = 32_768
    norm_eps: float = 1e-5


class RMSNorm(nn.Module):
    """x / rms(x) · weight, in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        inner, shared = config.q_heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, inner, bias=False)
        self.k_proj = nn.Linear(config.width, shared, bias=False)
        self.v_proj = nn.Linear(config.width, shared, bias=False)
        self.o_proj = nn.Linear(inner, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = (*x.shape[:2], -1, self.config.head_dim)
        q = rotate(self.q_proj(x).view(heads).transpose(1, 2), cos, sin)  # [B, Hq, T, D]
        k = rotate(self.k_proj(x).view(heads).transpose(1, 2), cos, sin)  # [B, Hkv, T, D]
        v = self.v_proj(x).view(heads).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)


class Llama(nn.Module):
    """Token ids in, logits out; the output matrix is the embedding."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.rope_theta = config.rope_theta  # may be lower while the first stage runs
        self.model = Decoder(config)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                # Residual branches start small, by depth (GPT-2's rule).
                nn.init.normal_(weight, std=0.02 / (2 * config.layers) ** 0.5)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Final hidden states `[B, T, width]` of token ids `[B, T]`."""
        cos, sin = rotary(tokens.shape[1], self.config.head_dim, self.rope_theta, tokens.device)
        x = self.model.embed_tokens(tokens)
        if torch.is_autocast_enabled(tokens.device.type):
            x = x.to(torch.get_autocast_dtype(tokens.device.type))
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.hidden(tokens), self.model.embed_tokens.weight)


def rotary(length: int, dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of every position's angles, `[T, dim]` each, float32."""
    frequency = theta ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequency)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, first half of the dimensions paired with the second."""
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def target_losses(logits: Tensor, targets: Tensor, kinds: Tensor) -> Tensor:
    """Mean cross entropy of each kind of target, `[4]` float32; 0 where a kind does not occur."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    of_kind = F.one_hot(kinds.flatten().long(), 4).to(loss.dtype)  # [B·T, 4]
    return loss @ of_kind / of_kind.sum(0).clamp(min=1)

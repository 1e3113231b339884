"""How `attn_implementation="anchor_attention"` works: masks, packing, options, prefill, record."""

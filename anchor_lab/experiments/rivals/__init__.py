"""All methods on a real language model: what recall costs."""

"""All methods on every head: what is kept, and what it costs."""

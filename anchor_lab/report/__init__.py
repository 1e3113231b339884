"""Reports on a model's sparsity: measured layer by layer, shown as one page."""

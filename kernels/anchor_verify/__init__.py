"""How the kernels are proven: compiled ahead of time, run under sanitizers, tested on a GPU."""

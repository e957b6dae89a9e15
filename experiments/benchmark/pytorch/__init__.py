"""The same models and loops in PyTorch, which the benchmarks compare with."""

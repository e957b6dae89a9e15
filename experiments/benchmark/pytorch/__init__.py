"""The same models and loops in PyTorch, for comparison in the benchmarks."""

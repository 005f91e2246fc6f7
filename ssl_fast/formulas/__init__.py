"""What the reference and the path with kernels share: rows, scalars, sums, statistics."""

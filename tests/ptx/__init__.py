"""The GPU kernels' PTX, run on the CPU: `simulator` interprets it, `compile` makes it from Triton kernels."""

"""What the operators' kernels are made of; csrc/cpu/engine has parts of the same names."""

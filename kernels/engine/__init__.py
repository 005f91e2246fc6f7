"""What the operators' kernels are made of. csrc/cpu/engine has parts of the same names.

A forward pass takes a `scale`, a `mask` and `unit_rows`. `symmetric_tiles` or `online_softmax` sum over the products of
a `tile`, and `loss_rows` makes losses of the sums. A backward pass makes `weighted_rows` and of them `input_gradients`.
"""

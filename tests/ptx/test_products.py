"""Products with rounded operands, in known answers."""

import torch

from .products import Products, through, to_tf32


def test_tf32_has_ten_bits_and_rounds_to_the_nearest():
    one, last = 1.0, 2.0**-10
    x = torch.tensor([one, one + last, one + 0.49 * last, one + 0.51 * last, -one - 0.51 * last, float("inf")])
    assert to_tf32(x).tolist() == [one, one + last, one, one + last, -one - last, float("inf")]
    assert to_tf32(torch.tensor(float("nan"))).isnan()


def test_both_passes_take_rounded_operands():
    a, b = torch.randn(2, 5, 5).unbind()
    for rounded in (to_tf32, through(torch.bfloat16)):
        leaf = a.clone().requires_grad_()
        with Products(rounded):
            product = leaf @ b
            product.backward(b)
        assert torch.equal(product, rounded(a) @ rounded(b))
        assert torch.equal(leaf.grad, rounded(b) @ rounded(b).T)


def test_float64_is_left_as_it_is():
    a = torch.randn(5, 5, dtype=torch.float64)
    expected = a @ a
    with Products(to_tf32):
        assert torch.equal(a @ a, expected)

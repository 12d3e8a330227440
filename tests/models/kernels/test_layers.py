"""Products of a network's layers."""

from __future__ import annotations

import torch

from abc_rag.models.kernels.layers import product


@torch.inference_mode()
def test_products_do_not_depend_on_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.get_num_threads()
    try:
        for inner, outer in ((192, 96), (512, 512), (64, 700)):
            weight, bias = torch.randn(outer, inner, generator=generator), torch.randn(outer, generator=generator)
            for rows in (*range(24), 127, 128, 200):
                x = torch.randn(rows, inner, generator=generator)
                found = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    found.append(product(x, weight, bias))
                assert found[0].shape == (rows, outer)
                assert all(torch.equal(one, found[0]) for one in found), rows
                torch.testing.assert_close(found[0], x @ weight.T + bias, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)

"""Products with the weights of LinalgCuda, under the emulator: bfloat16, float16 and float32 weights are one, two and
three bfloat16 slices. Against float64."""

import pytest
import torch

from laser_kernels.testing import eps

FULL, HALF = 0, 1
SLICES = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}


def cut(x, slices):
    """(slices, ...) bfloat16 whose sum is x."""
    out, rest = [], x.float()
    for _ in range(slices):
        out.append(rest.to(torch.bfloat16))
        rest = rest - out[-1].float()
    assert not rest.any()
    return torch.stack(out)


@pytest.mark.parametrize("dtype", SLICES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("selected", [None, [0, 2]])
def test_full_products_are_as_good_as_float32_and_half_ones_as_bfloat16(emu, dtype, transposed, selected):
    count, m, n, width = 3, 50, 37, 9
    a = torch.randn(count, m, n).to(dtype)
    q, z = torch.randn(count, n, width), torch.randn(count, m, width) * 1e3
    parts = cut(a.mT.contiguous() if transposed else a, SLICES[dtype])
    index = None if selected is None else torch.tensor(selected, dtype=torch.int32)
    exact = (a.double() @ q.double(), a.mT.double() @ z.double(), a.mT.double() @ a.double())
    size = [x.double().abs() @ y.double().abs() for x, y in ((a, q), (a.mT, z), (a.mT, a))]
    for precision in (FULL, HALF):
        y, x, g = (
            torch.full((count, m, width), -7.0),
            torch.full((count, n, width), -7.0),
            torch.full((count, n, n), -7.0),
        )
        of = None, 3
        if index is not None:
            of = index, len(index)
        emu.call(
            "emu_weight_products", parts, len(parts), transposed, count, m, n, width, precision, q, y, z, x, g, *of
        )
        # sums are rounded once for each slice's product, and what is left out is of order 2^-24
        fine, coarse = 4 * eps(torch.float32), 2.1 * 2.0**-9
        for found, want, scale, most in zip((y, x, g), exact, size, (0, 0, fine), strict=True):
            most = most or (fine if precision == FULL else coarse)
            for b in range(count):
                if index is not None and b not in index:
                    assert (found[b] == -7).all()
                    continue
                error = ((found[b] - want[b]).abs() / scale[b]).max().item()
                assert error <= most, (precision, b, error)
                assert most == fine or error > fine  # half is half
        assert torch.equal(g[0], g[0].mT)

"""The CUDA kernels on an emulated GPU: rows at any alignment, ends of memory, threads in another order."""

import ctypes
import mmap
import signal
import subprocess
import sys

import pytest
import torch

from megatron_octo.ops import plain
from tests.ops.cases import DTYPES, make, upstream

PAIRS = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16)]
PAIRS += [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)]
VOCABULARY = 20_000  # all 512 threads take several vectors
SHORT = (5, 33, 263)  # less than a vector, part of a warp, some of the warps


@pytest.fixture
def operators(emulated_operators):
    yield emulated_operators
    emulated_operators.backwards(False)


def rows_at(offset, tokens, columns, dtype, stride):
    """(storage, rows): rows that begin `offset` values after an aligned address, with NaN all around."""
    storage = torch.full((offset + tokens * stride + 64,), torch.nan, dtype=dtype)
    assert storage.data_ptr() % 64 == 0
    return storage, storage[offset:].as_strided((tokens, columns), (stride, 1))


def gradient_rows(stats_4T, tokens):
    maximum, total, weighted, _ = stats_4T
    return torch.stack([maximum, total.log(), total.log() - weighted / total, *upstream(tokens)])


@pytest.mark.parametrize(("dtype", "out_dtype"), PAIRS, ids=str)
@pytest.mark.parametrize("columns", [*SHORT, VOCABULARY, VOCABULARY + 1])
def test_rows_at_any_alignment(operators, dtype, out_dtype, columns):
    """At every offset of logits and gradients from an aligned address: the same bits, and nothing else written."""
    tokens, seen = 3, []
    logits, targets = make("normal", tokens, columns, dtype)
    targets[1] = -100
    scale = torch.tensor([1.0, 1.0, 0.7])
    reach = 16 // dtype.itemsize
    for offset in range(reach):
        stride = columns + reach if offset % 2 else columns + 1  # the same offset for all rows, or one for each
        _, x = rows_at(offset, tokens, columns, dtype, stride)
        x.copy_(logits)
        stats = operators.token_stats(x, targets, scale, columns, 0, -100, True)
        rows = gradient_rows(stats, tokens)
        storage, out = rows_at((3 * offset + 1) % reach, tokens, columns, out_dtype, stride)
        operators.token_grad(x, targets, scale, rows, columns, 0, -100, out)
        seen.append((stats, out.clone()))
        assert not out.isnan().any()
        out.fill_(torch.nan)
        assert storage.isnan().all()  # nothing was written between or around the rows
    for stats, out in seen:
        assert torch.equal(stats, seen[0][0]) and torch.equal(out, seen[0][1])
    wanted = plain.token_stats(logits, targets, scale, columns, 0, -100, True)
    torch.testing.assert_close(seen[0][0], wanted, rtol=1e-5, atol=1e-5)
    grad = torch.empty(tokens, columns)
    plain.token_grad(logits, targets, scale, gradient_rows(wanted, tokens), columns, 0, -100, grad)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[out_dtype]
    torch.testing.assert_close(seen[0][1].float(), grad, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [33, VOCABULARY + 1])
def test_threads_in_another_order_and_in_place_give_the_same_bits(operators, dtype, columns):
    """Shows a missing barrier, and a thread that reads a value another has overwritten."""
    tokens, stored = 6, columns + 3
    logits, targets = make("normal", tokens, stored, dtype)
    targets %= columns
    targets[4] = -100
    scale, seen = torch.ones(tokens), []
    for backwards in (False, True):
        operators.backwards(backwards)
        for in_place in (False, True):
            for offset in (0, 1):
                _, x = rows_at(offset, tokens, stored, dtype, stored)
                x.copy_(logits)
                stats = operators.token_stats(x, targets, scale, columns, 0, -100, True)
                out = x if in_place else torch.full_like(logits, torch.nan)
                operators.token_grad(x, targets, scale, gradient_rows(stats, tokens), columns, 0, -100, out)
                seen.append((stats, out.clone()))
    assert not seen[0][1][:, columns:].any() and not seen[0][1][4].any()
    for stats, out in seen[1:]:
        assert torch.equal(stats, seen[0][0]) and torch.equal(out, seen[0][1])


class Guarded:
    """Memory between two protected pages: an access to either kills the process."""

    def __init__(self, size):
        page = mmap.PAGESIZE
        self.size = -(-size // page) * page
        self.map = mmap.mmap(-1, self.size + 2 * page)
        self.bytes = (ctypes.c_char * (self.size + 2 * page)).from_buffer(self.map)
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (0, page + self.size):
            address = ctypes.c_void_p(ctypes.addressof(self.bytes) + guard)
            assert libc.mprotect(address, ctypes.c_size_t(page), 0) == 0

    def rows(self, tokens, columns, dtype, at_end, away=0):
        """Rows `away` values from the end or the beginning of the memory between the pages."""
        last = self.size - (tokens * columns + away) * dtype.itemsize
        first = mmap.PAGESIZE + (last if at_end else away * dtype.itemsize)
        return torch.frombuffer(self.map, dtype=dtype, count=tokens * columns, offset=first).view(tokens, columns)


@pytest.mark.parametrize("at_end", [False, True], ids=["first bytes", "last bytes"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [5, VOCABULARY, VOCABULARY + 1])
@pytest.mark.parametrize("away", [(0, 0), (0, 1), (1, 0)], ids=str)
def test_nothing_outside_an_allocation_is_touched(operators, dtype, columns, at_end, away):
    """Logits and gradient at the very end, or one of them a value away from it and so at another alignment."""
    tokens = 3
    logits, targets = make("normal", tokens, columns, dtype)
    x, out = (Guarded((tokens * columns + 1) * dtype.itemsize).rows(tokens, columns, dtype, at_end, n) for n in away)
    x.copy_(logits)
    scale = torch.ones(tokens)
    stats = operators.token_stats(x, targets, scale, columns, 0, -100, True)
    operators.token_grad(x, targets, scale, gradient_rows(stats, tokens), columns, 0, -100, out)
    assert out.isfinite().all()


def test_the_emulation_detects_faults(operators):
    """A missing barrier, a shuffle that some lanes skip, and an unaligned access."""
    no_barrier, part_of_a_warp, unaligned = range(3)
    x = torch.tensor([3.0, 0.0])
    operators.faulty(x, no_barrier)
    assert x[1] == 3.0  # right by luck
    operators.backwards(True)
    x[0] = 4.0
    operators.faulty(x, no_barrier)
    assert x[1] == 3.0  # the old value
    with pytest.raises(RuntimeError, match="a shuffle of the whole warp reached by 5 of 32 threads"):
        operators.faulty(x, part_of_a_warp)
    library = next(path for path in torch.ops.loaded_libraries if path.endswith("emulated.so"))
    code = f"import torch; torch.ops.load_library({library!r}); x = torch.ones(64)\n"
    code += f"torch.ops.octo_emulated.faulty(x, {unaligned})"
    completed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert -completed.returncode in (signal.SIGILL, signal.SIGTRAP), completed.stderr.decode()

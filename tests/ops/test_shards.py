"""A vocabulary split over ranks gives the results of one process: gloo, 2 and 3 ranks, shards of different sizes."""

import os
import subprocess
import sys

import pytest

CODE = """
import sys, torch, torch.distributed as dist
from megatron_octo.ops import VocabShard, linear_token_log_probs, token_log_probs
from tests.ops.cases import make, upstream

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
collectives = []
original = dist.all_reduce
dist.all_reduce = lambda *a, **k: (collectives.append(a[0].shape), original(*a, **k))[1]
V, T = 1000, 9
bounds = {2: [0, 700, 1000], 3: [0, 1, 640, 1000]}[ranks]
if len(sys.argv) > 1:                      # the last rank has only padding
    bounds[-2] = V
first, size, padding = bounds[rank], bounds[rank + 1] - bounds[rank], 3 * rank
shard = VocabShard(dist.group.WORLD, first, size)
for kind in ("normal", "masked", "floored", "peaked", "negative"):
    for dtype in (torch.float32, torch.bfloat16):
        logits, targets = make(kind, T, V, dtype)
        targets[4] = -100
        weights = upstream(T)
        whole = logits.clone().requires_grad_()
        one = token_log_probs(whole, targets, temperature=1.3, return_entropy=True)
        torch.autograd.backward((one.log_probs, one.entropy, one.log_sum_exp), weights)
        mine = torch.full((T, size + padding), 1e9, dtype=dtype)     # padding would win every softmax
        mine[:, :size] = logits[:, first : first + size]
        mine.requires_grad_()
        collectives.clear()
        part = token_log_probs(mine, targets, temperature=1.3, return_entropy=True, shard=shard)
        assert len(collectives) == 1, collectives
        torch.autograd.backward((part.log_probs, part.entropy, part.log_sum_exp), weights)
        for name in ("log_probs", "entropy", "log_sum_exp"):
            torch.testing.assert_close(getattr(part, name), getattr(one, name), rtol=1e-6, atol=5e-6)
        tolerance = dict(rtol=2e-5, atol=1e-7) if dtype == torch.float32 else dict(rtol=2**-7, atol=1e-6)
        torch.testing.assert_close(mine.grad[:, :size], whole.grad[:, first : first + size], **tolerance)
        assert not mine.grad[:, size:].any()
        grads = []                                               # without the entropy
        for x, part_of in ((whole, None), (mine, shard)):
            x.grad = None
            token_log_probs(x, targets, temperature=0.7, shard=part_of).log_probs.backward(weights[0])
            grads.append(x.grad)
        torch.testing.assert_close(grads[1][:, :size], grads[0][:, first : first + size], **tolerance)
        # every rank has the same bits
        everyone = [torch.empty_like(part.log_probs) for _ in range(ranks)]
        dist.all_gather(everyone, part.log_probs.detach())
        assert all(torch.equal(a, everyone[0]) for a in everyone)

for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2**-7)):
    generator = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, 16, generator=generator).to(dtype) for n in (T, V))
    targets = torch.randint(V, (T,), generator=generator)
    targets[2] = -100
    h1, w1 = h.clone().requires_grad_(), w.clone().requires_grad_()
    temperature = torch.linspace(0.7, 2.0, T)
    one = linear_token_log_probs(h1, w1, targets, temperature=temperature, return_entropy=True)
    (one.log_probs + 0.3 * one.entropy).sum().backward()
    h2 = h.clone().requires_grad_()
    w2 = torch.cat([w[first : first + size], torch.full((padding, 16), 1e9, dtype=dtype)]).requires_grad_()
    part = linear_token_log_probs(
        h2, w2, targets, temperature=temperature, return_entropy=True, shard=shard, vocabulary_block=99, chunk_tokens=4
    )
    (part.log_probs + 0.3 * part.entropy).sum().backward()
    torch.testing.assert_close(part.log_probs, one.log_probs, rtol=1e-5, atol=1e-5)
    # hidden gradients are summed over the ranks in fp32 and rounded once
    for mine, whole in ((h2.grad, h1.grad), (w2.grad[:size], w1.grad[first : first + size])):
        largest = max(1.0, float(whole.abs().max())) if whole.numel() else 1.0  # a rank of padding has no rows
        torch.testing.assert_close(mine, whole, rtol=10 * tolerance, atol=tolerance * largest)
    assert not w2.grad[size:].any()
print("equal")
"""


@pytest.mark.parametrize(("ranks", "extra"), [(2, []), (3, []), (2, ["padding-only"])])
def test_ranks_give_the_results_of_one_process(ranks, extra, tmp_path):
    (tmp_path / "compare.py").write_text(CODE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    completed = subprocess.run(
        [*command, str(tmp_path / "compare.py"), *extra],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
    )
    assert completed.returncode == 0, completed.stderr[-4000:]
    assert completed.stdout.count("equal") == ranks

"""The actor with our operator against OpenRLHF's own, on its real Actor class, in a process that is a worker's.

Installing the hooks changes a process for good, so all cases are computed in one of their own.
"""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.bridge.models import make_model

pytestmark = pytest.mark.skipif(find_spec("openrlhf") is None or find_spec("deepspeed") is None, reason="no OpenRLHF")

WORK = """
import json, sys, torch
from megatron_octo.rl.cpu import install_rl_on_cpu
install_rl_on_cpu()
from openrlhf.models.actor import Actor
import openrlhf.models.actor as module
from megatron_octo.rl.actor import install_fused_actor

original = Actor.forward
results = []
for folder in sys.argv[1:]:
    for temperature in (1.0, 0.7):
        actor = Actor(folder, attn_implementation="sdpa", temperature=temperature)
        actor.model = actor.model.to(DTYPE)
        generator = torch.Generator().manual_seed(0)
        sequences = torch.randint(3, 250, (5, 23), generator=generator)
        attention = torch.ones_like(sequences)
        action = torch.zeros(5, 22, dtype=torch.bool)
        for row, (left, first, last) in enumerate([(0, 6, 22), (3, 8, 22), (0, 10, 15), (7, 20, 21), (0, 1, 22)]):
            attention[row, :left] = 0            # padded before the prompt
            attention[row, last + 1 :] = 0       # and after the response
            action[row, first:last] = True
        upstream, with_entropy = torch.randn(5, 22, generator=generator), torch.randn(5, 22, generator=generator)
        found = []
        for fused in (False, True):
            Actor.forward = original
            if fused:
                install_fused_actor()
            actor.model.zero_grad()
            log_probs, output = actor(
                sequences, action, attention_mask=attention, return_output=True, return_entropy=True
            )
            entropy = output.entropy[:, -22:]
            ((log_probs * upstream).sum() + (entropy * with_entropy * action).sum()).backward()
            gradients = torch.cat([p.grad.flatten().float() for p in actor.model.parameters() if p.grad is not None])
            with torch.no_grad():
                alone = actor(sequences, action, attention_mask=attention)
            logits = actor(sequences, attention_mask=attention, return_output=True)["logits"]
            found.append((log_probs.detach(), (entropy * action).detach(), gradients, alone, logits.detach().float()))
        a, b = found
        results.append({
            "log_probs": float((a[0] - b[0]).abs().max()),
            "entropy": float((a[1] - b[1]).abs().max()),
            "gradients": float((a[2] - b[2]).norm() / a[2].norm()),
            "alone": float((b[3] - b[0]).abs().max()),
            "logits": float((a[4] - b[4]).abs().max()),
            "size": float(a[0].abs().max()),
        })
print(json.dumps(results))
"""

# log-probs and entropy (absolute), gradients (of the norm). In bf16 OpenRLHF's logits are rounded to eight bits before
# they are made fp32, ours never are
TOLERANCES = {"float32": (1e-5, 1e-5), "bfloat16": (2e-2, 2e-2)}


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_log_probs_entropy_and_gradients_are_openrlhfs(dtype, tmp_path):
    folders = [str(make_model(case, tmp_path / case)) for case in ("llama-3.2", "qwen2.5-untied")]
    work = WORK.replace("DTYPE", f"torch.{dtype}")
    done = subprocess.run([sys.executable, "-c", work, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == 4
    near, near_gradients = TOLERANCES[dtype]
    for result in results:
        assert result["size"] > 1.0
        assert result["log_probs"] <= near and result["entropy"] <= near
        assert result["gradients"] <= near_gradients
        assert result["alone"] <= near
        assert result["logits"] == 0.0

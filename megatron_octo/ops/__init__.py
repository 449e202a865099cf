"""Token log-probs and entropy, from logits or from hidden states: the Python interface to csrc/."""

from megatron_octo.ops.linear import linear_token_log_probs
from megatron_octo.ops.logits import IGNORE_INDEX, TokenLogProbs, token_log_probs
from megatron_octo.ops.shard import VocabShard

__all__ = ["IGNORE_INDEX", "TokenLogProbs", "VocabShard", "linear_token_log_probs", "token_log_probs"]

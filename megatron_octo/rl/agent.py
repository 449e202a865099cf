"""OpenRLHF's agent of this project: it samples one response to a prompt, within the step's limit, and grades it.

OpenRLHF loads this file by its path in every vLLM actor (`--train.agent_func_path`).
"""

import asyncio
from copy import deepcopy
from typing import Any

from openrlhf.utils.agent import AgentExecutorBase

from megatron_octo.grading import Graders, Verdict
from megatron_octo.rl.session import Session


class AgentExecutor(AgentExecutorBase):
    """Samples a response and grades it. The name and the signature of `execute` are OpenRLHF's."""

    def __init__(self) -> None:
        self.rl = Session.required().rl
        self.graders = Graders(self.rl.reward.processes, self.rl.reward.seconds)

    async def execute(
        self,
        prompt: str,
        label: str,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """One sample in OpenRLHF's format.

        Args:
            label: the gold answer.
            max_length: most tokens of prompt and response together.
        """
        prompt_ids = hf_tokenizer(prompt, add_special_tokens=False)["input_ids"]
        params = deepcopy(sampling_params)
        params.max_tokens = min(params.max_tokens or max_length, max_length - len(prompt_ids))
        params.stop, params.include_stop_str_in_output = list(self.rl.stop), True
        params.detokenize = True
        output = (await llm_engine.generate(prompt_ids, params)).outputs[0]
        response_ids, truncated = list(output.token_ids), output.finish_reason == "length"
        response = hf_tokenizer.decode(response_ids, skip_special_tokens=True)
        verdict = await asyncio.to_thread(self.graders.grade, response, label, prompt)
        log_probs = None
        if params.logprobs is not None:
            sampled = zip(response_ids, output.logprobs, strict=True)
            log_probs = [0.0] * len(prompt_ids) + [float(candidates[token].logprob) for token, candidates in sampled]
        return {
            "prompt": prompt,
            "label": label,
            "images": images,
            "mm_train_inputs": None,
            "reward": self._reward(verdict, truncated),
            "scores": float(verdict.is_right),
            "observation_tokens": list(prompt_ids) + response_ids,
            "action_ranges": [(len(prompt_ids), len(prompt_ids) + len(response_ids))],
            "rollout_log_probs": log_probs,
            "truncated": truncated,
            "extra_logs": {
                "right": float(verdict.is_right), "has_answer": float(verdict.has_answer),
                "grader_timed_out": float(verdict.timed_out),
            },
        }  # fmt: skip

    def _reward(self, verdict: Verdict, truncated: bool) -> float:
        settings = self.rl.reward
        reward = settings.right if verdict.is_right else settings.wrong
        if not verdict.has_answer and settings.no_answer is not None:
            reward = settings.no_answer
        return reward - settings.truncated_penalty * truncated

"""RL from an exported stage: OpenRLHF on Ray and vLLM, with this project's log-probs, reward and schedule inside."""

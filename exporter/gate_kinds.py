"""How a checkpoint says that its attentions are gated; what gates are is in whisper_gates.py."""

from __future__ import annotations

GATED_WHISPER = "GatedWhisperForConditionalGeneration"
GATES_KEY = "attention_gates"  # in config.json
# A share for each token, of all heads together or of each head.
TOKEN_GATES, HEAD_GATES = "token", "head"
GATES = (TOKEN_GATES, HEAD_GATES)

"""Greedy decoding of a Whisper in torch, for scores during a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechquant.exporter.whisper_checkpoints import cache_name

if TYPE_CHECKING:
    import torch

    from speechquant.students.speech import Writing


def greedy_tokens(model: Any, hidden: torch.Tensor, writing: Writing, most: int) -> list[list[int]]:
    """Return at most so many tokens after the prompt of each clip that the encoder has heard."""
    import torch

    generation, device = writing.generation, hidden.device
    never = torch.tensor(generation.suppressed, dtype=torch.long, device=device)
    never_first = torch.tensor(generation.suppressed_first, dtype=torch.long, device=device)
    given = torch.tensor([writing.prompt] * len(hidden), device=device)
    heard = given[:, :0]
    past, cache = None, cache_name(model.model.decoder)
    for step in range(min(most, generation.room_after(len(writing.prompt)))):
        found = model.model.decoder(
            input_ids=given, encoder_hidden_states=hidden, use_cache=True, **{cache: past}
        )
        past = found[cache]
        logits = model.proj_out(found.last_hidden_state[:, -1]).float()
        # As transcription without timestamps has it.
        logits[:, generation.end + 1 :] = -torch.inf
        logits[:, never] = -torch.inf
        if step == 0:
            logits[:, never_first] = -torch.inf
        given = logits.argmax(-1, keepdim=True)
        heard = torch.cat([heard, given], dim=1)
        if bool((heard == generation.end).any(1).all()):
            break
    rows: list[list[int]] = heard.tolist()
    return rows

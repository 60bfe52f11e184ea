"""Models whose attention or hidden states are replaced by what a test puts there."""

from contextlib import contextmanager

import numpy as np
import torch

from structure_aligned.evaluation.trunk_outputs import _attention_modules


def sharpened(model, factor: float = 15.0):
    """A fresh model attends to everything about alike; this one does not."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("query.weight", "key.weight", ".q.weight", ".k.weight")):
                parameter.mul_(factor)
    return model


@contextmanager
def planted_attention(model, tokenizer, maps: dict[str, np.ndarray], layer: int, head: int):
    """One head of one layer attends as `maps` `(L, L)` say, by sequence; all others as they do."""
    seen = {}

    def remember(module, args, kwargs):
        seen["input_ids"] = args[0] if args else kwargs["input_ids"]

    def plant(module, args, output):
        if output[1] is None:  # no eager attention: nothing reads it
            return output
        attentions = output[1].clone()
        for row, ids in enumerate(seen["input_ids"]):
            tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
            places = [position for position, token in enumerate(tokens) if len(token) == 1]
            wanted = torch.from_numpy(maps["".join(tokens[position] for position in places)]).to(attentions)
            attentions[row, head][np.ix_(places, places)] = wanted
        return output[0], attentions

    trunk = model.base_model
    # What runs is the trunk's forward, or for AMPLIFY its inner part, which no hook sees.
    inner = trunk._encode if hasattr(trunk, "_encode") else None
    if inner is not None:

        def encode(input_ids, *args, **kwargs):
            seen["input_ids"] = input_ids
            return inner(input_ids, *args, **kwargs)

        trunk._encode = encode
    handles = [
        trunk.register_forward_pre_hook(remember, with_kwargs=True),
        _attention_modules(model)[layer].register_forward_hook(plant),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if inner is not None:
            del trunk._encode

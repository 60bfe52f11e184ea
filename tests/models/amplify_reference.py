"""AMPLIFY's forward pass written out with complex rotary numbers, one protein at a time."""

import torch


def rms_norm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotate(x, theta=10_000.0):
    """`x` of shape (heads, length, head_dim); components 2i and 2i + 1 are real and imaginary part."""
    heads, length, width = x.shape
    pairs = torch.complex(x[..., 0::2], x[..., 1::2])
    frequencies = theta ** -(torch.arange(0, width, 2, dtype=x.dtype) / width)
    angles = torch.arange(length, dtype=x.dtype)[:, None] * frequencies
    rotated = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(rotated).reshape(heads, length, width)


def amplify(state, input_ids, num_heads, eps=1e-5):
    """
    Logits, outputs of the blocks and attention weights for the tokens of one protein without padding.

    `state` has the published names; biases are not supported.
    """
    x = state["encoder.weight"][input_ids]
    width = x.shape[-1] // num_heads
    hidden_states, attentions = [], []
    layer = 0
    while f"transformer_encoder.{layer}.q.weight" in state:
        part = {
            key.split(".", 2)[2]: value
            for key, value in state.items()
            if key.startswith(f"transformer_encoder.{layer}.")
        }
        normed = rms_norm(x, part["attention_norm.weight"], eps)
        heads = [(normed @ part[f"{name}.weight"].T).view(len(x), num_heads, width).transpose(0, 1) for name in "qkv"]
        query, key, value = rotate(heads[0]), rotate(heads[1]), heads[2]
        attention = (query @ key.transpose(1, 2) / width**0.5).softmax(-1)
        x = x + (attention @ value).transpose(0, 1).reshape(len(x), -1) @ part["wo.weight"].T
        normed = rms_norm(x, part["ffn_norm.weight"], eps)
        gate, up = (normed @ half.T for half in part["ffn.w12.weight"].chunk(2))
        x = x + (gate * gate.sigmoid() * up) @ part["ffn.w3.weight"].T
        hidden_states.append(x)
        attentions.append(attention)
        layer += 1
    logits = rms_norm(x, state["layer_norm_2.weight"], eps) @ state["decoder.weight"].T + state["decoder.bias"]
    return logits, hidden_states, attentions

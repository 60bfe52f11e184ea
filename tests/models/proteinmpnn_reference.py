"""
ProteinMPNN's encoder written down plainly, to be right rather than fast: the oracle of the tests.

Everything is dense, `(B, L, …)`, in float64: all distances, one-hots, every concatenation, and masks where residues
are incomplete. Nothing is left out, split or shared.
"""

import torch
import torch.nn.functional as F


def backbone(coords):
    """The five named points of each residue, `(B, L, 3)` each; coordinates that are NaN are 0."""
    n, ca, c, o = coords.double().nan_to_num(0.0).unbind(2)
    b, a = ca - n, c - ca
    cb = -0.58273431 * torch.linalg.cross(b, a) + 0.56802827 * b - 0.54067466 * a + ca
    return {"N": n, "CA": ca, "C": c, "O": o, "CB": cb}


def distances(first, second):
    return ((first[:, :, None] - second[:, None, :]).pow(2).sum(-1) + 1e-6).sqrt()


def gather(pairs, index):
    """Entries of `(B, L, L, …)` at the neighbours `(B, L, K)`."""
    batch = torch.arange(pairs.shape[0])[:, None, None]
    return pairs[batch, torch.arange(pairs.shape[1])[None, :, None], index]


def neighbors(atoms, mask, k):
    """Nearest residues `(B, L, min(k, L))`; pairs with a masked residue are as far as the farthest pair of the row."""
    valid = mask[:, :, None] * mask[:, None, :]
    distance = distances(atoms["CA"], atoms["CA"]) * valid
    distance = distance + (1 - valid) * distance.amax(-1, keepdim=True)
    return distance.topk(min(k, mask.shape[1]), dim=-1, largest=False).indices


def edge_inputs(atoms, index, positions, chains, functions=16, reach=32):
    """One-hot of the relative position and the basis functions of the 25 distances."""
    offset = (positions[:, :, None] - positions[:, None, :] + reach).clamp(0, 2 * reach)
    offset = torch.where(chains[:, :, None] == chains[:, None, :], offset, 2 * reach + 1)
    one_hot = F.one_hot(gather(offset, index), 2 * reach + 2).double()
    pairs = [("CA", "CA"), ("N", "N"), ("C", "C"), ("O", "O"), ("CB", "CB")]
    pairs += [("CA", "N"), ("CA", "C"), ("CA", "O"), ("CA", "CB"), ("N", "C"), ("N", "O"), ("N", "CB"), ("CB", "C")]
    pairs += [("CB", "O"), ("O", "C"), ("N", "CA"), ("C", "CA"), ("O", "CA"), ("CB", "CA"), ("C", "N"), ("O", "N")]
    pairs += [("CB", "N"), ("C", "CB"), ("O", "CB"), ("C", "O")]
    basis = []
    for first, second in pairs:
        distance = gather(distances(atoms[first], atoms[second]), index)
        for center in torch.linspace(2.0, 22.0, functions, dtype=torch.float64):
            basis.append(torch.exp(-(((distance - center) / (20.0 / functions)) ** 2)))
    return one_hot, torch.stack(basis, -1)


def reference_forward(state, coords, positions=None, chains=None, k=48, scale=30.0, functions=16, reach=32):
    """
    Residue embeddings `(B, L, width)`, of residues with NaN coordinates too, which others do not see, and the edge
    features `(B, L, K, width)`. `state` is a state dict.
    """
    state = {name: tensor.double() for name, tensor in state.items()}

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    batch, length = coords.shape[:2]
    if positions is None:
        positions = torch.arange(length).expand(batch, -1)
    if chains is None:
        chains = torch.zeros(batch, length, dtype=torch.int64)
    mask = torch.isfinite(coords).all(-1).all(-1).double()
    atoms = backbone(coords)
    index = neighbors(atoms, mask, k)
    one_hot, basis = edge_inputs(atoms, index, positions, chains, functions, reach)
    features = linear(torch.cat([linear(one_hot, "features.embeddings.linear"), basis], -1), "features.edge_embedding")
    features = norm(features, "features.norm_edges")

    edges, hidden = linear(features, "W_e"), torch.zeros(batch, length, state["W_e.weight"].shape[0]).double()
    row = torch.arange(batch)[:, None, None]
    attend = (mask[:, :, None] * mask[row, index])[..., None]
    count = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("encoder_layers."))

    def message(hidden, edges, *names):
        own = hidden[:, :, None].expand(-1, -1, index.shape[2], -1)
        x = torch.cat([own, edges, hidden[row, index]], -1)
        first, second, third = names
        return linear(F.gelu(linear(F.gelu(linear(x, first)), second)), third)

    for layer in (f"encoder_layers.{i}" for i in range(count)):
        messages = message(hidden, edges, f"{layer}.W1", f"{layer}.W2", f"{layer}.W3")
        hidden = norm(hidden + (messages * attend).sum(2) / scale, f"{layer}.norm1")
        dense = linear(F.gelu(linear(hidden, f"{layer}.dense.W_in")), f"{layer}.dense.W_out")
        hidden = norm(hidden + dense, f"{layer}.norm2") * mask[..., None]
        messages = message(hidden, edges, f"{layer}.W11", f"{layer}.W12", f"{layer}.W13")
        edges = norm(edges + messages, f"{layer}.norm3")
    return hidden, features

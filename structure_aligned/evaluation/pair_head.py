"""The contact head that goes by hidden states: a small network on the two residues of a pair, over a frozen trunk."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from datasets.utils import tqdm
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenizing import SequenceBatch, sequence_batches
from ..models.trunks import tokenizer_of, trunk_digest
from ..structure.chain import ProteinChain
from .contact_heads import DEFAULT_MAX_TOKENS, MIN_SEPARATION, ContactHead, LabelledPairs, labelled_pairs
from .contacts import CONTACT_THRESHOLD
from .trunk_outputs import run_trunk


PAIRS_AT_ONCE = 65_536


class PairHead(ContactHead):
    """
    Contacts from pairs of residues: `[h_i ; h_j]` → Linear → ReLU → Linear → (no contact, contact), on the last hidden
    state h of a frozen trunk, as in the structure-alignment paper (arXiv:2505.16896).

    A pair's logits are the mean of its two orders, in training too, so that the map is symmetric. The first layer is
    kept as its two halves, `W_a h_i + W_b h_j`: no tensor of all pairs is wider than `width`, and predictions are made
    in blocks.

    Args:
        hidden_size (`int`): Of the model.
        width (`int`, *optional*, defaults to 128): Of the hidden layer.
        trunk (`str`, *optional*): See [`ContactHead`].
    """

    file_name = "pair_head"

    def __init__(self, hidden_size: int, width: int = 128, trunk: str | None = None) -> None:
        super().__init__({"hidden_size": hidden_size, "width": width}, trunk=trunk)
        self.first = nn.Linear(hidden_size, width)
        self.second = nn.Linear(hidden_size, width, bias=False)
        # One layer on [h_i ; h_j] has twice the inputs of either half, which its initial range goes by.
        for parameter in (*self.first.parameters(), *self.second.parameters()):
            nn.init.uniform_(parameter, -((2 * hidden_size) ** -0.5), (2 * hidden_size) ** -0.5)
        self.output = nn.Linear(width, 2)

    @staticmethod
    def sizes_of(model: PreTrainedModel) -> dict[str, int]:
        return {"hidden_size": model.config.hidden_size}

    def forward(self, hidden_state: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """
        Logits `(pairs, 2)`.

        Args:
            hidden_state (`torch.Tensor` of shape `(L, hidden_size)`): Of one protein's residues.
            first, second (`torch.LongTensor` of shape `(pairs,)`): Residues, counted from 0.
        """
        a, b = self.first(hidden_state), self.second(hidden_state)
        # The output layer is linear, so the mean over both orders may as well be taken before it.
        return self.output((F.relu(a[first] + b[second]) + F.relu(a[second] + b[first])) / 2)

    @torch.no_grad()
    def contact_probabilities(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Map `(L, L)` from the hidden states `(L, hidden_size)` of one protein's residues."""
        a, b = self.first(hidden_state), self.second(hidden_state)
        weight, bias = self.output.weight[1] - self.output.weight[0], self.output.bias[1] - self.output.bias[0]
        rows = max(1, PAIRS_AT_ONCE // len(hidden_state))
        ordered = torch.cat([F.relu(block[:, None] + b) @ weight for block in a.split(rows)])
        return ((ordered + ordered.T) / 2 + bias).sigmoid()

    def predict_batch(self, model: PreTrainedModel, batch: SequenceBatch) -> list[torch.Tensor]:
        hidden_state = run_trunk(model, batch)
        on_device = copy.deepcopy(self).to(hidden_state.device)
        return [
            on_device.contact_probabilities(own[mask].float()).cpu()
            for own, mask in zip(hidden_state, batch.residue_mask)
        ]

    @classmethod
    def fit(
        cls,
        model: PreTrainedModel,
        chains: Sequence[ProteinChain],
        tokenizer: PreTrainedTokenizerBase | None = None,
        validation_chains: Sequence[ProteinChain] | None = None,
        width: int = 128,
        epochs: int = 10,
        patience: int = 3,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        max_pairs: int = 20_000,
        min_separation: int = MIN_SEPARATION,
        threshold: float = CONTACT_THRESHOLD,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        seed: int = 0,
    ) -> PairHead:
        """
        Trains a head on the labelled pairs of `chains`; the trunk is frozen and run once for each chain.

        The loss is the plain cross-entropy over pairs, as in the paper: the classes are not balanced, so that outputs
        are probabilities. A step is one chain, with at most `max_pairs` of its pairs, drawn anew in each epoch.
        Hidden states are standardised by the training residues' mean and deviation, which the first layer takes up
        afterwards; they are kept in memory, `4 · hidden_size` bytes per residue.

        Args:
            model ([`PreTrainedModel`]): An ESM2 or AMPLIFY.
            chains (`Sequence[ProteinChain]`): To train on.
            tokenizer ([`PreTrainedTokenizerBase`], *optional*): The family's by default.
            validation_chains (`Sequence[ProteinChain]`, *optional*): With them, the epoch of the least validation loss
                is kept, and training ends `patience` epochs after it; without, the last of `epochs`.
            width (`int`, *optional*, defaults to 128): Of the hidden layer.
            epochs, patience (`int`, *optional*, default to 10 and 3): See above.
            learning_rate, weight_decay (`float`, *optional*, default to 1e-3 and 0.01): Of AdamW.
            max_pairs (`int`, *optional*, defaults to 20000): Of one chain in a step.
            min_separation, threshold, max_tokens: As for [`ContactRegression.fit`].
            seed (`int`, *optional*, defaults to 0): Of the head's first weights, the order and the drawn pairs.

        Raises:
            ValueError: There are no contacts among the labelled pairs, or a number is out of range.
        """
        if min(width, epochs, patience, max_pairs) < 1:
            raise ValueError(
                f"width, epochs, patience and max_pairs are {width}, {epochs}, {patience} and {max_pairs}; expected "
                "at least 1 each."
            )
        tokenizer = tokenizer_of(model.config) if tokenizer is None else tokenizer
        rng = np.random.default_rng(seed)
        pairs = labelled_pairs(chains, threshold, min_separation)
        states = _hidden_states(model, chains, tokenizer, max_tokens)
        mean, deviation = _moments(states)
        judged = None
        if validation_chains:
            judged = (
                [(own - mean) / deviation for own in _hidden_states(model, validation_chains, tokenizer, max_tokens)],
                labelled_pairs(validation_chains, threshold, min_separation),
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = cls(model.config.hidden_size, width, trunk=trunk_digest(model))
        head.to(model.device)
        optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
        usable = [index for index, own in enumerate(pairs) if len(own.first)]
        best, best_loss, best_epoch = None, float("inf"), 0
        with tqdm(range(epochs), desc="Pair head", unit="epoch") as progress:
            for epoch in progress:
                for index in rng.permutation(usable):
                    drawn = _draw(pairs[index], max_pairs, rng)
                    loss = _loss(head, (states[index] - mean) / deviation, drawn)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                if judged is None:
                    continue
                validation_loss = _mean_loss(head, *judged)
                progress.set_postfix(validation_loss=f"{validation_loss:.4f}")
                if validation_loss < best_loss:
                    best, best_loss, best_epoch = copy.deepcopy(head.state_dict()), validation_loss, epoch
                elif epoch - best_epoch >= patience:
                    break
        if best is not None:
            head.load_state_dict(best)
        head.cpu()._absorb(mean, deviation)
        return head.requires_grad_(False).eval()

    @torch.no_grad()
    def _absorb(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """Makes the first layer one on hidden states as they are, where it was one on standardised ones."""
        for half in (self.first, self.second):
            half.weight /= deviation
            self.first.bias -= half.weight @ mean


def _hidden_states(
    model: PreTrainedModel, chains: Sequence[ProteinChain], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[torch.Tensor]:
    """Last hidden states `(L, hidden_size)` of each chain, float32 on the CPU."""
    states: list[torch.Tensor] = [torch.empty(0)] * len(chains)
    with tqdm(total=len(chains), desc="Hidden states", unit="chain") as progress:
        for batch in sequence_batches([chain.sequence for chain in chains], tokenizer, max_tokens):
            hidden_state = run_trunk(model, batch.to(model.device)).float().cpu()
            for index, own, mask in zip(batch.indices, hidden_state, batch.residue_mask):
                states[index] = own[mask]
            progress.update(len(batch.indices))
    return states


def _moments(states: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    count = sum(len(own) for own in states)
    mean = sum(own.double().sum(0) for own in states) / count
    variance = sum((own.double() - mean).square().sum(0) for own in states) / count
    # What hardly varies is not blown up: the first layer could not take it up without cancellation.
    deviation = torch.maximum(variance.sqrt(), 1e-4 * mean.abs())
    return mean.float(), torch.where(deviation > 0, deviation, 1.0).float()


def _draw(pairs: LabelledPairs, count: int, rng: np.random.Generator) -> LabelledPairs:
    if len(pairs.first) <= count:
        return pairs
    chosen = rng.choice(len(pairs.first), count, replace=False)
    return LabelledPairs(pairs.first[chosen], pairs.second[chosen], pairs.contacts[chosen])


def _loss(head: PairHead, hidden_state: torch.Tensor, pairs: LabelledPairs, reduction: str = "mean") -> torch.Tensor:
    device = head.output.weight.device
    first, second = torch.from_numpy(pairs.first).to(device), torch.from_numpy(pairs.second).to(device)
    logits = head(hidden_state.to(device), first, second)
    return F.cross_entropy(logits, torch.from_numpy(pairs.contacts).long().to(device), reduction=reduction)


@torch.no_grad()
def _mean_loss(head: PairHead, states: list[torch.Tensor], pairs: list[LabelledPairs]) -> float:
    total = 0.0
    for hidden_state, own in zip(states, pairs):
        for start in range(0, len(own.first), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            block = LabelledPairs(own.first[part], own.second[part], own.contacts[part])
            total += _loss(head, hidden_state, block, reduction="sum").item()
    return total / sum(len(own.first) for own in pairs)

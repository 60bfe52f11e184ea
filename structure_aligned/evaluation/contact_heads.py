"""Heads that read contacts from a frozen protein language model, and the one that goes by its attentions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets.utils import tqdm
from safetensors.torch import save
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.tokenizing import SequenceBatch, sequence_batches
from ..models.trunks import tokenizer_of, trunk_digest
from ..models.weights import check_tensors, read_tensors
from ..structure.chain import ProteinChain
from ..utils.files import atomic_file, read_json, write_json
from .contacts import CONTACT_RANGES, CONTACT_THRESHOLD, contact_map
from .trunk_outputs import ResidueAttention, attention_shape, stream_attentions


logger = logging.get_logger(__name__)

MIN_SEPARATION = CONTACT_RANGES["all"][0]

DEFAULT_MAX_TOKENS = 1024
"""Of a batch: small, as attention maps of a padded batch grow with the square of its longest sequence."""


class ContactHead(nn.Module):
    """
    What every contact head has: a prediction for a batch, and a pair of files that may lie beside a checkpoint.

    Args:
        settings (`dict`): JSON values that the weights' shapes follow from, as `__init__` takes them.
        trunk (`str`, *optional*): Digest of the trunk that the head was fitted on; see [`trunk_digest`].
    """

    file_name: ClassVar[str]
    """Name of both files without `.safetensors` and `.json`."""

    def __init__(self, settings: dict[str, Any], trunk: str | None = None) -> None:
        super().__init__()
        self.settings, self.trunk = settings, trunk

    def predict_batch(self, model: PreTrainedModel, batch: SequenceBatch) -> list[torch.Tensor]:
        """Contact probabilities `(L, L)`, float32 and symmetric, of each row of a batch on the model's device."""
        raise NotImplementedError

    def check_model(self, model: PreTrainedModel) -> None:
        """Raises `ValueError` for a model of other sizes, and warns of one with other weights."""
        wrong = {name: size for name, size in self.sizes_of(model).items() if self.settings[name] != size}
        if wrong:
            expected = ", ".join(f"{name} {self.settings[name]}" for name in wrong)
            raise ValueError(
                f"The model has {', '.join(f'{name} {size}' for name, size in wrong.items())} but this "
                f"{type(self).__name__} was fitted on one with {expected}; fit one on this model."
            )
        if self.trunk is not None and self.trunk != trunk_digest(model):
            logger.warning(
                f"This {type(self).__name__} was fitted on other weights than the model's. Its contacts are those of "
                "a head that does not fit; fit one on this model."
            )

    @staticmethod
    def sizes_of(model: PreTrainedModel) -> dict[str, int]:
        """Those of `settings` that are sizes of the model."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes `<file_name>.safetensors` and `.json` into a folder, such as the checkpoint's: nothing clashes."""
        folder = Path(save_directory)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_file(folder / f"{self.file_name}.safetensors") as file:
            file.write(save(state))
        content = {"head": type(self).__name__, "settings": self.settings, "trunk": self.trunk}
        write_json(folder / f"{self.file_name}.json", content)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> ContactHead:
        """
        What `save_pretrained` wrote.

        Raises:
            FileNotFoundError: The folder has no such head.
            ValueError: Its files are damaged or do not fit each other.
        """
        description = Path(folder) / f"{cls.file_name}.json"
        if not description.is_file():
            raise FileNotFoundError(
                f"{folder} has no {description.name}; expected a folder that {cls.__name__}.save_pretrained wrote to."
            )
        try:
            content = read_json(description)
            head = cls(**content["settings"], trunk=content["trunk"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{description} does not describe a {cls.__name__} ({error!r}); save it anew.") from error
        path, expected = description.with_suffix(".safetensors"), f"the weights of a {cls.__name__}"
        state = read_tensors(path, expected)
        shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
        check_tensors(state, shapes, path, description.name, expected)
        head.load_state_dict(state)
        return head.eval()


@dataclass
class LabelledPairs:
    """
    The pairs of a chain that have a contact label and enough sequence separation.

    Args:
        first, second (`np.ndarray` of shape `(pairs,)`, int64): Residues, counted from 0; `first` is less.
        contacts (`np.ndarray` of shape `(pairs,)`, bool): The labels.
    """

    first: np.ndarray
    second: np.ndarray
    contacts: np.ndarray

    @classmethod
    def of(cls, chain: ProteinChain, threshold: float, min_separation: int) -> LabelledPairs:
        contacts, valid = contact_map(chain.coords, chain.sequence, threshold)
        first, second = np.nonzero(np.triu(valid, k=min_separation))
        return cls(first, second, contacts[first, second])


def labelled_pairs(
    chains: Sequence[ProteinChain], threshold: float = CONTACT_THRESHOLD, min_separation: int = MIN_SEPARATION
) -> list[LabelledPairs]:
    """
    Of each chain; what heads are fitted on.

    Raises:
        ValueError: Among all chains there are no contacts, or nothing else.
    """
    pairs = [LabelledPairs.of(chain, threshold, min_separation) for chain in chains]
    contacts, total = sum(int(own.contacts.sum()) for own in pairs), sum(len(own.contacts) for own in pairs)
    if not 0 < contacts < total:
        raise ValueError(
            f"{len(pairs)} chains have {total} labelled pairs at least {min_separation} residues apart, {contacts} of "
            "them contacts; expected some of both. Give chains with resolved CB atoms."
        )
    return pairs


class ContactRegression(ContactHead):
    """
    L1-penalised logistic regression on all attention maps, symmetrised and APC-corrected (Rao et al.,
    doi:10.1101/2020.12.15.422761). Published ESM2 checkpoints have one as `contact_head`.

    Args:
        num_hidden_layers, num_attention_heads (`int`): Of the model.
        trunk (`str`, *optional*): See [`ContactHead`].

    Example:

    ```python
    head = ContactRegression.fit(model, chains[:20])
    head.save_pretrained("my-checkpoint")
    contacts = predict_contacts(model, ["MSVVGIDLGFQSCYVAV"], head=head)
    ```
    """

    file_name = "contact_regression"

    def __init__(self, num_hidden_layers: int, num_attention_heads: int, trunk: str | None = None) -> None:
        super().__init__(
            {"num_hidden_layers": num_hidden_layers, "num_attention_heads": num_attention_heads}, trunk=trunk
        )
        self.weight = nn.Parameter(torch.zeros(num_hidden_layers, num_attention_heads), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(()), requires_grad=False)

    @staticmethod
    def sizes_of(model: PreTrainedModel) -> dict[str, int]:
        layers, heads = attention_shape(model)
        return {"num_hidden_layers": layers, "num_attention_heads": heads}

    @classmethod
    def from_linear(cls, linear: nn.Linear, num_hidden_layers: int, num_attention_heads: int) -> ContactRegression:
        """From weights `(1, num_hidden_layers · num_attention_heads)`, as those of ESM2's own contact head."""
        head = cls(num_hidden_layers, num_attention_heads)
        head.weight.copy_(linear.weight.detach().float().view(num_hidden_layers, num_attention_heads))
        if linear.bias is not None:
            head.bias.copy_(linear.bias.detach().float().squeeze())
        return head.eval()

    @classmethod
    def fit(
        cls,
        model: PreTrainedModel,
        chains: Sequence[ProteinChain],
        tokenizer: PreTrainedTokenizerBase | None = None,
        C: float = 0.15,
        solver: str = "liblinear",
        max_iter: int = 200,
        min_separation: int = MIN_SEPARATION,
        threshold: float = CONTACT_THRESHOLD,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        seed: int = 0,
    ) -> ContactRegression:
        """
        Fits the regression to the contacts of a few chains; about 20 are enough, and none may be in the test set.

        All labelled pairs are used as they are, without balancing. Memory is about 38 bytes for each pair and
        attention head with liblinear, which copies them, and 4 with saga: for 20 chains of 240 residues (550,000
        pairs) that is 2.5 or 0.3 GB with the 120 heads of ESM2 8M, and 14 or 1.5 GB with the 660 of ESM2 650M.

        Args:
            model ([`PreTrainedModel`]): An ESM2 or AMPLIFY.
            chains (`Sequence[ProteinChain]`): With contacts; unresolved residues are left out.
            tokenizer ([`PreTrainedTokenizerBase`], *optional*): The family's by default.
            C (`float`, *optional*, defaults to 0.15): Inverse strength of the penalty, as in scikit-learn.
            solver (`str`, *optional*, defaults to `"liblinear"`): Of [`LogisticRegression`]; or `"saga"`.
            max_iter (`int`, *optional*, defaults to 200): At most this many iterations of the solver.
            min_separation (`int`, *optional*, defaults to 6): Least |i − j|.
            threshold (`float`, *optional*, defaults to 8.0): Of contacts, in Å.
            max_tokens (`int`, *optional*, defaults to 1024): Of a batch, padding included.
            seed (`int`, *optional*, defaults to 0): Of the solver's order.

        Raises:
            ValueError: There are no contacts among the chains' labelled pairs, or the solver is another one.
        """
        if solver not in ("liblinear", "saga"):
            raise ValueError(f"solver is {solver!r}; expected 'liblinear' or 'saga', which know the L1 penalty.")
        layers, heads = attention_shape(model)
        chains = list(chains)
        pairs = labelled_pairs(chains, threshold, min_separation)
        features = attention_features(model, [chain.sequence for chain in chains], pairs, tokenizer, max_tokens)
        labels = np.concatenate([own.contacts for own in pairs])
        # What used to be penalty="l1" is l1_ratio=1 from scikit-learn 1.8 on, where penalty is deprecated.
        l1 = {"l1_ratio": 1.0} if LogisticRegression().penalty == "deprecated" else {"penalty": "l1"}
        regression = LogisticRegression(C=C, solver=solver, max_iter=max_iter, random_state=seed, **l1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said below, with what to do
            regression.fit(features, labels)
        if not regression.coef_.any():
            logger.warning(
                f"The L1 penalty has left none of the {layers * heads} attention heads: all contacts will have the "
                f"same probability. Attention of this model may hold no contacts; or raise C, which is {C}."
            )
        if regression.n_iter_.max() >= max_iter:
            logger.warning(f"The {solver} solver has not converged after {max_iter} iterations; raise max_iter.")
        head = cls(layers, heads, trunk=trunk_digest(model))
        head.weight.copy_(torch.from_numpy(regression.coef_).view(layers, heads))
        head.bias.copy_(torch.tensor(regression.intercept_.item()))
        return head.eval()

    def predict_batch(self, model: PreTrainedModel, batch: SequenceBatch) -> list[torch.Tensor]:
        logits: torch.Tensor | None = None

        def add(layer: int, attentions: torch.Tensor) -> None:
            nonlocal logits
            weights = self.weight[layer].to(attentions)
            own = ResidueAttention(attentions, batch.residue_mask).weighted_sum(weights)
            logits = own if logits is None else logits + own

        stream_attentions(model, batch, add)
        logits = (logits + logits.transpose(-1, -2)) / 2  # of rounding alone it is not symmetric to the last bit
        probabilities = (logits + self.bias.to(logits)).sigmoid().float()
        return [
            own[mask][:, mask].cpu() for own, mask in zip(probabilities, batch.residue_mask.to(probabilities.device))
        ]


def attention_features(
    model: PreTrainedModel,
    sequences: Sequence[str],
    pairs: Sequence[LabelledPairs],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
) -> np.ndarray:
    """
    Attention of every layer and head, symmetrised and APC-corrected, at chosen pairs of residues.

    Args:
        model ([`PreTrainedModel`]): An ESM2 or AMPLIFY.
        sequences (`Sequence[str]`): One-letter codes.
        pairs (`Sequence[LabelledPairs]`): Of each sequence.
        tokenizer, max_tokens: As for [`predict_contacts`].

    Returns:
        `np.ndarray` of shape `(pairs, num_hidden_layers · num_attention_heads)`, float32: All pairs of the first
        sequence, then those of the second and so on; a layer's heads are side by side.
    """
    tokenizer = tokenizer_of(model.config) if tokenizer is None else tokenizer
    layers, heads = attention_shape(model)
    bounds = np.cumsum([0, *(len(own.first) for own in pairs)])
    features = np.empty((bounds[-1], layers * heads), dtype=np.float32)
    with tqdm(total=len(sequences), desc="Attention features", unit="chain") as progress:
        for batch in sequence_batches(sequences, tokenizer, max_tokens):
            positions = [mask.nonzero().squeeze(1) for mask in batch.residue_mask]
            batch = batch.to(model.device)

            def collect(
                layer: int,
                attentions: torch.Tensor,
                batch: SequenceBatch = batch,
                positions: list[torch.Tensor] = positions,
            ) -> None:
                corrected = ResidueAttention(attentions, batch.residue_mask)
                for row, index in enumerate(batch.indices):
                    first, second = (
                        positions[row][residues].to(attentions.device)
                        for residues in (pairs[index].first, pairs[index].second)
                    )
                    block = features[bounds[index] : bounds[index + 1], layer * heads : (layer + 1) * heads]
                    block[:] = corrected.at_pairs(row, first, second).cpu().numpy()

            stream_attentions(model, batch, collect)
            progress.update(len(batch.indices))
    return features

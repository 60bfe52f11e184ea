"""Our classes, and a plain `EsmForMaskedLM` beside them, in the form that Transformers' common model tests want."""

from __future__ import annotations

import unittest
from types import ModuleType
from typing import Any

import torch
from transformers import EsmConfig, EsmForMaskedLM, PreTrainedConfig

from structure_aligned.models.alignment import (
    AmplifyForStructureAlignment,
    EsmForStructureAlignment,
    StructureAlignmentMixin,
)
from structure_aligned.models.amplify import AmplifyForMaskedLM, AmplifyModel
from structure_aligned.models.configuration import GearNetConfig, ProteinMPNNConfig
from structure_aligned.models.gearnet import GearNetModel
from structure_aligned.models.proteinmpnn import ProteinMPNNEncoder
from structure_aligned.structure.backbone_graph import BackboneGraph
from structure_aligned.structure.graph import ResidueGraph
from tests import tiny


PGNNS = (GearNetModel, ProteinMPNNEncoder)
MODELS = (
    EsmForMaskedLM,
    EsmForStructureAlignment,
    AmplifyModel,
    AmplifyForMaskedLM,
    AmplifyForStructureAlignment,
    *PGNNS,
)


class SequenceTester:
    """A `model_tester` of a language model. The common tests read its sizes."""

    batch_size, seq_length = 3, 7
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, model_class: type) -> None:
        self.model_class = model_class
        self.family = tiny.FAMILIES[model_class.config_class.model_type]
        self.expected_num_hidden_layers = self.family.hidden_states
        self.is_training = model_class is not AmplifyModel  # it has no loss

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        input_ids = torch.randint(5, 24, (self.batch_size, self.seq_length))
        return self.family.config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    def labels(self) -> dict[str, torch.Tensor]:
        """Labels of every loss that the class has."""
        if not self.is_training:
            return {}
        shape = (self.batch_size, self.seq_length)
        labels = {"labels": torch.zeros(shape, dtype=torch.long)}
        if issubclass(self.model_class, StructureAlignmentMixin):
            labels["structure_labels"] = torch.zeros(shape, dtype=torch.long)
            generator = torch.Generator().manual_seed(0)  # some tests ask twice and compare
            labels["structure_embeddings"] = torch.randn(*shape, tiny.STRUCTURE_DIM, generator=generator)
            labels["residue_mask"] = torch.ones(shape, dtype=torch.bool)
        return labels


class PgnnTester:
    """A `model_tester` of a graph network. Its only dimension is that of the residues."""

    batch_size = seq_length = 20
    hidden_size, num_hidden_layers, expected_num_hidden_layers = 16, 2, 2
    is_training = False  # neither has a loss

    def __init__(self, model_class: type) -> None:
        self.model_class = model_class

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        chain = tiny.chain(self.seq_length)
        if self.model_class is GearNetModel:
            graph = ResidueGraph.from_chain(chain.ca, chain.sequence)
            inputs = {"ca": graph.ca, "residue_types": graph.residue_types, "edges": graph.edges}
            return GearNetConfig(hidden_dims=[16, 16]), inputs
        coords, positions = torch.from_numpy(chain.coords[:, :4]), torch.arange(self.seq_length)
        graph = BackboneGraph.from_chain(coords, positions, 8)
        config = ProteinMPNNConfig(hidden_size=16, num_encoder_layers=2, num_neighbors=8)
        return config, {"coords": graph.coords, "neighbors": graph.neighbors}

    def labels(self) -> dict[str, torch.Tensor]:
        return {}


def common_case(model_class: type, common: ModuleType) -> type[unittest.TestCase]:
    """A test case with all common tests for one model class."""
    is_pgnn = model_class in PGNNS

    def set_up(self) -> None:
        self.model_tester = (PgnnTester if is_pgnn else SequenceTester)(model_class)

    def prepare(self, inputs: dict[str, Any], model_class: type, return_labels: bool = False) -> dict[str, Any]:
        # The original knows the classes that take labels by their names in the Auto classes.
        inputs = common.ModelTesterMixin._prepare_for_class(self, inputs, model_class)
        return inputs | (self.model_tester.labels() if return_labels else {})

    members = {
        "__module__": __name__,
        "all_model_classes": (model_class,),
        "setUp": set_up,
        "_prepare_for_class": prepare,
        "has_attentions": not is_pgnn,
        "test_resize_embeddings": not is_pgnn,
        "test_mismatched_shapes": not is_pgnn,
        "test_can_init_all_missing_weights_before_2023": True,
        # Of ESM's own head for contacts, which no loss reaches; ours are in tests/models/test_alignment.py.
        "test_all_params_have_gradient": model_class.config_class is not EsmConfig,
    }
    return type(f"{model_class.__name__}Test", (common.ModelTesterMixin, unittest.TestCase), members)

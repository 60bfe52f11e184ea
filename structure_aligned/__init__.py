"""
Protein language models that know structure: ESM2 and AMPLIFY post-trained with a latent and a physical structure task.

Public names are imported on first use (PEP 562), so that `import structure_aligned` takes milliseconds. From then on
the Auto classes of Transformers load AMPLIFY, GearNet and ProteinMPNN folders.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import registration


__version__ = "0.1.0"

_PUBLIC = {
    "structure.chain": ["ProteinChain"],
    "structure.io": ["read_chains", "write_mmcif"],
    "structure.tokens": ["STRUCTURE_ALPHABET_3DI", "encode_3di", "structure_tokens_to_string"],
    "structure.secondary": ["assign_secondary_structure"],
    "structure.graph": ["residue_graph"],
    "structure.synthetic": ["synthetic_chain", "synthetic_chains", "write_synthetic_folds"],
    "models.configuration": ["AmplifyConfig", "GearNetConfig", "ProteinMPNNConfig"],
    "models.amplify": ["AmplifyForMaskedLM", "AmplifyModel"],
    "models.amplify_tokenizer": ["amplify_tokenizer"],
    "models.gearnet": ["GearNetModel"],
    "models.proteinmpnn": ["ProteinMPNNEncoder"],
    "models.heads": ["StructureAlignmentOutput", "StructureAlignmentSettings"],
    "models.alignment": [
        "AmplifyForStructureAlignment",
        "AutoModelForStructureAlignment",
        "EsmForStructureAlignment",
        "compute_residue_losses",
    ],
    "models.esm2": ["esm2_config", "esm2_tokenizer"],
    "models.pgnn": ["PGNN_FAMILIES", "load_pgnn", "register_pgnn", "untrained_gearnet", "untrained_proteinmpnn"],
    "models.trunks": ["fresh_trunk"],
    "objectives.contrastive": ["chunked_contrastive_losses", "contrastive_losses"],
    "objectives.losses": ["LossWeights", "ResidueLosses", "combine_losses", "residue_contrastive_losses"],
    "objectives.negatives": ["residue_losses_among"],
    "objectives.selection": ["select_residues"],
    "data.builder": ["StructureDatasetBuilder", "dataset_pgnn", "embedding_dim"],
    "data.features": ["decode_embedding"],
    "data.quality": ["QualityThresholds", "mask_low_confidence", "mean_b_factors"],
    "data.reference": ["attach_reference_losses"],
    "data.seen": ["leave_out_seen", "write_training_chains"],
    "data.relatives": ["assert_disjoint", "chain_keys", "leave_out_related", "read_clusters", "sequence_digest"],
    "data.split_summary": ["SplitSummary"],
    "data.splits": ["split_chains"],
    "data.collator": ["DataCollatorForStructureAlignment"],
    "data.batching": ["TokenBudgetBatchSampler"],
    "data.tokenizing": ["sequence_batches", "tokenize_residues"],
    "evaluation.assays": ["Assay", "FitnessMetrics", "evaluate_fitness", "fitness_metrics", "read_assay"],
    "evaluation.contact_heads": ["ContactRegression"],
    "evaluation.contact_prediction": [
        "checkpoint_contact_head",
        "evaluate_contacts",
        "load_contact_head",
        "predict_contacts",
    ],
    "evaluation.contacts": ["contact_map", "contact_precision", "contact_summary"],
    "evaluation.fitness": ["score_mutations"],
    "evaluation.mutants": ["parse_mutants"],
    "evaluation.pair_head": ["PairHead"],
    "evaluation.perplexity": ["PseudoPerplexity", "pseudo_perplexity"],
    "evaluation.statistics": [
        "Comparison",
        "bootstrap_mean",
        "bootstrap_ratio",
        "compare",
        "holm",
        "mean_and_sd_over_seeds",
        "paired_test",
    ],
    "data.finding": ["find_chains"],
    "data.ranks": ["launched_ranks"],
    "data.sharding": ["PreparedDataset", "prepare_dataset"],
    "evaluation.before_after": ["compare_scores", "score_proteins"],
    "evaluation.embedding_plot": ["plot_embedding"],
    "evaluation.probes": ["evaluate_labelled_sequences", "evaluate_probes"],
    "evaluation.residue_labels": ["LabelledSequence", "fold_class", "read_residue_labels"],
    "evaluation.separability": ["neighbour_purity", "silhouettes"],
    "evaluation.tokens": ["evaluate_structure_tokens"],
    "hub.export": ["export_trunk"],
    "hub.cards": ["ModelCardCallback", "add_results", "check_card", "write_model_card"],
    "hub.push": ["PushPlan", "plan_push", "push_to_hub"],
    "hub.prepared_dataset": [
        "DatasetPushPlan",
        "load_prepared_dataset",
        "plan_dataset_push",
        "push_dataset_to_hub",
    ],
    "hub.run_facts": ["RunFacts"],
    "inference.embedding_files": ["read_embeddings"],
    "inference.embedding_folder": ["embed_fasta"],
    "inference.embeddings": ["SequenceEmbedding", "embed_sequences"],
    "inference.fasta": ["read_fasta"],
    "inference.structure_tokens": ["predict_structure_tokens"],
    "training.adapters": ["AlignmentPeftModel", "add_lora", "four_bit_config", "load_adapters", "merge_adapters"],
    "structure.fetch": ["fetch_structures"],
    "evaluation.report": ["evaluate_models"],
    "evaluation.report_inputs": ["EvaluationInputs", "EvaluationOptions", "load_inputs"],
    "training.arguments": ["StructureAlignmentTrainingArguments"],
    "training.inspection": ["SelectionRecord", "selection_frequency", "selection_summary", "selection_table"],
    "training.selection_plot": ["plot_selection"],
    "training.report": ["comparison_table", "majority_accuracy"],
    "training.trainer": ["StructureAlignmentTrainer"],
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


if TYPE_CHECKING:
    from .data.batching import TokenBudgetBatchSampler
    from .data.builder import StructureDatasetBuilder, dataset_pgnn, embedding_dim
    from .data.collator import DataCollatorForStructureAlignment
    from .data.features import decode_embedding
    from .data.finding import find_chains
    from .data.quality import QualityThresholds, mask_low_confidence, mean_b_factors
    from .data.ranks import launched_ranks
    from .data.reference import attach_reference_losses
    from .data.relatives import assert_disjoint, chain_keys, leave_out_related, read_clusters, sequence_digest
    from .data.seen import leave_out_seen, write_training_chains
    from .data.sharding import PreparedDataset, prepare_dataset
    from .data.split_summary import SplitSummary
    from .data.splits import split_chains
    from .data.tokenizing import sequence_batches, tokenize_residues
    from .evaluation.assays import Assay, FitnessMetrics, evaluate_fitness, fitness_metrics, read_assay
    from .evaluation.before_after import compare_scores, score_proteins
    from .evaluation.contact_heads import ContactRegression
    from .evaluation.contact_prediction import (
        checkpoint_contact_head,
        evaluate_contacts,
        load_contact_head,
        predict_contacts,
    )
    from .evaluation.contacts import contact_map, contact_precision, contact_summary
    from .evaluation.embedding_plot import plot_embedding
    from .evaluation.fitness import score_mutations
    from .evaluation.mutants import parse_mutants
    from .evaluation.pair_head import PairHead
    from .evaluation.perplexity import PseudoPerplexity, pseudo_perplexity
    from .evaluation.probes import evaluate_labelled_sequences, evaluate_probes
    from .evaluation.report import evaluate_models
    from .evaluation.report_inputs import EvaluationInputs, EvaluationOptions, load_inputs
    from .evaluation.residue_labels import LabelledSequence, fold_class, read_residue_labels
    from .evaluation.separability import neighbour_purity, silhouettes
    from .evaluation.statistics import (
        Comparison,
        bootstrap_mean,
        bootstrap_ratio,
        compare,
        holm,
        mean_and_sd_over_seeds,
        paired_test,
    )
    from .evaluation.tokens import evaluate_structure_tokens
    from .hub.cards import ModelCardCallback, add_results, check_card, write_model_card
    from .hub.export import export_trunk
    from .hub.prepared_dataset import (
        DatasetPushPlan,
        load_prepared_dataset,
        plan_dataset_push,
        push_dataset_to_hub,
    )
    from .hub.push import PushPlan, plan_push, push_to_hub
    from .hub.run_facts import RunFacts
    from .inference.embedding_files import read_embeddings
    from .inference.embedding_folder import embed_fasta
    from .inference.embeddings import SequenceEmbedding, embed_sequences
    from .inference.fasta import read_fasta
    from .inference.structure_tokens import predict_structure_tokens
    from .models.alignment import (
        AmplifyForStructureAlignment,
        AutoModelForStructureAlignment,
        EsmForStructureAlignment,
        compute_residue_losses,
    )
    from .models.amplify import AmplifyForMaskedLM, AmplifyModel
    from .models.amplify_tokenizer import amplify_tokenizer
    from .models.configuration import AmplifyConfig, GearNetConfig, ProteinMPNNConfig
    from .models.esm2 import esm2_config, esm2_tokenizer
    from .models.gearnet import GearNetModel
    from .models.heads import StructureAlignmentOutput, StructureAlignmentSettings
    from .models.pgnn import PGNN_FAMILIES, load_pgnn, register_pgnn, untrained_gearnet, untrained_proteinmpnn
    from .models.proteinmpnn import ProteinMPNNEncoder
    from .models.trunks import fresh_trunk
    from .objectives.contrastive import chunked_contrastive_losses, contrastive_losses
    from .objectives.losses import LossWeights, ResidueLosses, combine_losses, residue_contrastive_losses
    from .objectives.negatives import residue_losses_among
    from .objectives.selection import select_residues
    from .structure.chain import ProteinChain
    from .structure.fetch import fetch_structures
    from .structure.graph import residue_graph
    from .structure.io import read_chains, write_mmcif
    from .structure.secondary import assign_secondary_structure
    from .structure.synthetic import synthetic_chain, synthetic_chains, write_synthetic_folds
    from .structure.tokens import STRUCTURE_ALPHABET_3DI, encode_3di, structure_tokens_to_string
    from .training.adapters import AlignmentPeftModel, add_lora, four_bit_config, load_adapters, merge_adapters
    from .training.arguments import StructureAlignmentTrainingArguments
    from .training.inspection import SelectionRecord, selection_frequency, selection_summary, selection_table
    from .training.report import comparison_table, majority_accuracy
    from .training.selection_plot import plot_selection
    from .training.trainer import StructureAlignmentTrainer


registration.install()

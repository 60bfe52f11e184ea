"""
Transformers' own common model tests with our classes in them, and a plain `EsmForMaskedLM` beside ours: what holds for
that one holds for ours too, except for the tests that are listed here with the reason.
"""

import unittest
from dataclasses import dataclass, field
from functools import cache

import pytest
from transformers import EsmForMaskedLM

from structure_aligned.models.alignment import AmplifyForStructureAlignment, EsmForStructureAlignment
from structure_aligned.models.amplify import AmplifyForMaskedLM, AmplifyModel
from tests.common import transformers_source
from tests.common.testers import MODELS, PGNNS, common_case


pytestmark = [pytest.mark.slow, pytest.mark.common]

_RESIZING = dict.fromkeys(
    ("test_resize_embeddings_untied", "test_resize_tokens_embeddings"),
    "Transformers' ESM cannot change the size of its vocabulary: lm_head.bias keeps its length.",
)
_INTERNAL = {
    **dict.fromkeys(
        ("test_can_capture_specific_layers_hidden_states", "test_capture_outputs_decorator"),
        "It is about the hooks of Transformers' `capture_outputs`, which these classes do without.",
    ),
    **dict.fromkeys(
        ("test_can_load_from_already_mapped_keys", "test_reverse_loading_mapping"),
        "Transformers has no table of old names for these checkpoints.",
    ),
    "test_internal_model_config_and_subconfig_are_same": "The configuration has none inside, as ESM's has ESMFold's.",
}
_WITHOUT_LOSS = dict.fromkeys(
    (
        "test_training",
        "test_training_gradient_checkpointing",
        "test_training_gradient_checkpointing_use_reentrant_false",
        "test_training_gradient_checkpointing_use_reentrant_true",
        "test_enable_input_require_grads_with_gradient_checkpointing",
    ),
    "The class takes no labels and so has no loss.",
)
_GRAPHS = {
    "test_batching_equivalence": "Graphs are packed into a larger one; there is no batch dimension to cut.",
    **dict.fromkeys(
        (
            "test_attention_outputs",
            "test_can_set_attention_dynamically",
            "test_eager_matches_sdpa_inference",
            "test_multimodal_outputs_are_returned",
            "test_sdpa_can_dispatch_non_composite_models",
        ),
        "A graph network has no attention between tokens.",
    ),
    **dict.fromkeys(
        (
            "test_inputs_embeds",
            "test_model_get_set_embeddings",
            "test_resize_embeddings_untied_no_reinit_on_post_init",
            "test_can_load_ignoring_mismatched_shapes",
            "test_load_with_mismatched_shapes",
        ),
        "A graph network has no vocabulary, and so no embeddings or head whose size could be changed.",
    ),
}
NOT_APPLICABLE: dict[type, dict[str, str]] = {
    EsmForMaskedLM: _RESIZING,
    EsmForStructureAlignment: _RESIZING,
    AmplifyModel: _INTERNAL | _WITHOUT_LOSS,
    AmplifyForMaskedLM: _INTERNAL,
    AmplifyForStructureAlignment: _INTERNAL,
    **dict.fromkeys(PGNNS, _INTERNAL | _WITHOUT_LOSS | _GRAPHS),
}
"""Tests that cannot apply, by class, with the reason. A parameterized test is listed once."""


@dataclass
class Outcome:
    """Names of the tests, and for those that did not pass the traceback or the reason."""

    passed: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="session")
def run(pytestconfig):
    """`run(model_class)`: outcome of all common tests for this class, run once in a process."""
    common = transformers_source.load(pytestconfig)

    @cache
    def run(model_class: type) -> Outcome:
        outcome, result = Outcome(), unittest.TestResult()
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(common_case(model_class, common))
        names = {test._testMethodName for test in suite}
        suite.run(result)
        for found, into in (
            (result.failures + result.errors, outcome.failed),
            (result.skipped, outcome.skipped),
        ):
            for test, text in found:
                into[getattr(test, "test_case", test)._testMethodName] = text  # of a sub-test, the test around it
        outcome.passed = names - outcome.failed.keys() - outcome.skipped.keys()
        return outcome

    return run


def of_list(names, listed: dict[str, str]) -> set[str]:
    """Those of the names that are listed; parameterized ones are `<listed name>_<number>_…`."""
    return {
        name
        for name in names
        if any(name == one or (name.startswith(f"{one}_") and name[len(one) + 1].isdigit()) for one in listed)
    }


@pytest.mark.parametrize("model_class", MODELS)
def test_what_holds_for_esm_holds_for_ours(run, model_class):
    plain, ours, listed = run(EsmForMaskedLM), run(model_class), NOT_APPLICABLE[model_class]
    assert len(plain.passed) > 80  # most of the others need a GPU or are about other kinds of models
    failed = ours.failed.keys() - of_list(ours.failed, listed)
    assert not failed, "\n\n".join(f"{name}\n{ours.failed[name]}" for name in sorted(failed))
    left_out = plain.passed - ours.passed
    left_out -= of_list(left_out, listed)
    assert not left_out, {name: ours.skipped[name] for name in left_out}
    # The list itself: every test on it exists and does not pass.
    names = ours.passed | ours.failed.keys() | ours.skipped.keys()
    assert [name for name in listed if not of_list(names, {name: ""})] == []
    assert of_list(ours.passed, listed) == set()

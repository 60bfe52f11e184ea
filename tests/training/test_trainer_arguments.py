"""What one knows of a Transformers Trainer: its arguments work here too, or are refused by name."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers.integrations
import transformers.trainer
from transformers.trainer_utils import HPSearchBackend

from structure_aligned.data.collator import DataCollatorForStructureAlignment
from structure_aligned.models.esm2 import esm2_tokenizer
from structure_aligned.objectives.losses import IGNORE_INDEX
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments
from structure_aligned.training.checking import check_evaluation_set
from structure_aligned.training.trainer import StructureAlignmentTrainer
from tests import tiny


def make_arguments(tmp_path, **options):
    defaults = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
    defaults |= {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2}
    return StructureAlignmentTrainingArguments(str(tmp_path), **(defaults | options))


def make_trainer(tmp_path, train=None, evaluation=None, given=None, **options):
    given = given or {}
    model = {} if "model_init" in given else {"model": tiny.esm_model()}
    return StructureAlignmentTrainer(
        args=make_arguments(tmp_path, per_device_eval_batch_size=2, **options),
        train_dataset=tiny.dataset(6) if train is None else train,
        eval_dataset=tiny.dataset(5) if evaluation is None else evaluation,
        **({"processing_class": esm2_tokenizer()} | model | given),
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def own(metrics):
    """Without times."""
    return {name: value for name, value in metrics.items() if not name.endswith(("runtime", "per_second", "_time"))}


def token_hits(predictions, labels):
    known = labels != IGNORE_INDEX
    return int((predictions.argmax(-1)[known] == labels[known]).sum()), int(known.sum())


def token_accuracy(prediction):
    (_, logits), (_, labels) = prediction.predictions, prediction.label_ids
    hits, count = token_hits(logits, labels)
    return {"accuracy_again": hits / count}


class TokenAccuracyByBatch:
    def __init__(self):
        self.hits = self.count = 0

    def __call__(self, prediction, compute_result=False):
        if isinstance(prediction.predictions, list):  # of eval_do_concat_batches=False
            batches = zip(prediction.predictions, prediction.label_ids)
        else:
            batches = [(prediction.predictions, prediction.label_ids)]
        for (_, logits), (_, labels) in batches:
            hits, count = token_hits(torch.as_tensor(logits), torch.as_tensor(labels))
            self.hits, self.count = self.hits + hits, self.count + count
        return {"accuracy_again": self.hits / self.count}


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: token_accuracy, {}),
        (lambda: token_accuracy, {"eval_accumulation_steps": 1}),
        (TokenAccuracyByBatch, {"batch_eval_metrics": True}),
        (TokenAccuracyByBatch, {"eval_do_concat_batches": False}),
    ],
    ids=["whole", "accumulated", "by batch", "not concatenated"],
)
def test_metrics_of_the_user_come_beside_our_own(tmp_path, make, options):
    expected = own(make_trainer(tmp_path).evaluate())
    assert {"eval_loss", "eval_mlm_loss", "eval_token_accuracy", "eval_retrieval_at_1"} <= expected.keys()
    found = own(make_trainer(tmp_path, given={"compute_metrics": make()}, **options).evaluate())
    assert found.pop("eval_accuracy_again") == pytest.approx(expected["eval_token_accuracy"], rel=1e-12)
    assert found == expected


@pytest.mark.parametrize(
    "options",
    [
        {"batch_eval_metrics": True},
        {"eval_do_concat_batches": False},
        {"prediction_loss_only": True},
        {"eval_accumulation_steps": 1},
        {"include_for_metrics": ["loss", "inputs"]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_evaluation_change_no_metric(tmp_path, options):
    assert own(make_trainer(tmp_path, **options).evaluate()) == own(make_trainer(tmp_path).evaluate())


def test_losses_and_inputs_for_metrics(tmp_path):
    seen = {}

    def compute_metrics(prediction):
        seen.update(losses=prediction.losses, inputs=prediction.inputs)
        return {"loss": -1.0, "token_accuracy": 2.0}

    options = {"include_for_metrics": ["loss", "inputs"]}
    metrics = make_trainer(tmp_path, given={"compute_metrics": compute_metrics}, **options).evaluate()
    assert seen["inputs"].shape[0] == 5 and len(seen["losses"]) >= 5 and np.isfinite(seen["losses"]).all()
    # `eval_loss` is the Trainer's word; any other name may be the user's.
    assert metrics["eval_loss"] == make_trainer(tmp_path).evaluate()["eval_loss"]
    assert metrics["eval_token_accuracy"] == 2.0


def test_predictions_are_logits_and_labels(tmp_path):
    trainer = make_trainer(tmp_path)
    rows = tiny.dataset(5)
    output = trainer.predict(rows)
    collator = trainer.data_collator.for_evaluation()
    assert [values.shape[-1] for values in output.predictions] == [33, 20]
    for name, labels in zip(("labels", "structure_labels"), output.label_ids, strict=True):
        for index, row in enumerate(rows):
            batch = collator([row])
            length = int(batch["attention_mask"].sum())
            np.testing.assert_array_equal(labels[index, :length], batch[name][0, :length])
            assert (labels[index, length:] == IGNORE_INDEX).all(), name
    with torch.no_grad():
        logits = trainer.model(batch["input_ids"], batch["attention_mask"]).structure_logits[0, :length]
    np.testing.assert_allclose(output.predictions[1][4, :length], logits, rtol=1e-4, atol=1e-5)
    assert output.metrics["test_loss"] == trainer.evaluate()["eval_loss"]
    labels = make_trainer(tmp_path, label_names=["residue_mask"]).predict(rows).label_ids
    assert labels[0].sum() == rows[0]["length"] - 1
    with pytest.raises(ValueError, match=r"label_names has \['classes'\], but the batch has only input_ids"):
        make_trainer(tmp_path, label_names=["classes"]).predict(rows)


def test_logits_may_be_reduced_before_they_are_gathered(tmp_path):
    def hits(logits, labels):
        return (logits[1].argmax(-1) == labels[1]) & (labels[1] != IGNORE_INDEX)

    def compute_metrics(prediction):
        return {
            "accuracy_again": (prediction.predictions == 1).sum() / (prediction.label_ids[1] != IGNORE_INDEX).sum()
        }

    given = {"preprocess_logits_for_metrics": hits, "compute_metrics": compute_metrics}
    metrics = make_trainer(tmp_path, given=given).evaluate()
    assert metrics["eval_accuracy_again"] == pytest.approx(metrics["eval_token_accuracy"], rel=1e-12)


@pytest.mark.parametrize("format", ["torch", "numpy"])
def test_the_format_of_a_dataset_changes_nothing(tmp_path, format):
    found = []
    for name in (None, format):
        train, evaluation = (tiny.dataset(count).with_format(name) for count in (6, 5))
        trainer = make_trainer(tmp_path, train, evaluation)
        trainer.train()
        found.append((losses(trainer), own(trainer.evaluate())))
    assert found[0] == found[1]


def test_rows_that_are_no_dicts_are_refused(tmp_path):
    for sets in ((tiny.dataset(2).with_format("arrow"), None), (None, tiny.dataset(2).with_format("arrow"))):
        with pytest.raises(ValueError, match=r"are of the type Table; expected dicts. .* dataset.with_format\(None\)"):
            make_trainer(tmp_path, *sets)


def test_evaluation_refuses_embeddings_of_another_pgnn(tmp_path):
    trainer = make_trainer(tmp_path)
    for evaluate in (trainer.evaluate, trainer.predict):
        with pytest.raises(ValueError, match="come from the pGNN two but the model was aligned with tiny"):
            evaluate(tiny.dataset(2, pgnn="two"))
    with pytest.raises(ValueError, match="come from the pGNN two but the model was aligned with tiny"):
        make_trainer(tmp_path, evaluation=[tiny.row(0, pgnn="two")])


def test_model_init_trains_as_the_model_does(tmp_path):
    expected = make_trainer(tmp_path, latent_weight=0.0)
    expected.train()
    trainer = make_trainer(tmp_path, given={"model_init": lambda: tiny.esm_model()}, latent_weight=0.0)
    for _ in range(2):  # from its beginning each time
        first = trainer.model
        trainer.train()
        assert trainer.model is not first
        assert losses(trainer) == losses(expected)
        frozen = {name.split(".")[-2] for name, p in trainer.model.named_parameters() if not p.requires_grad}
        assert {"contact_head", "sequence_projection"} & frozen == {"sequence_projection"}
        assert trainer.model.config.structure_alignment["pgnn"] == "tiny"
        assert trainer.model.config.structure_alignment["loss_weights"] == [1.0, 0.5, 0.0]


@pytest.fixture
def search(monkeypatch):
    """A backend that tries the values it is given, in the place of Optuna, which need not be installed."""

    class Backend:
        def ensure_available(self):
            pass

        def run(self, trainer, n_trials, direction, trials):
            runs = []
            for number, values in enumerate(trials):
                trainer.train(trial=SimpleNamespace(number=number, params=values))
                runs.append((losses(trainer), trainer.compute_objective(trainer.evaluate())))
            return runs

    monkeypatch.setitem(transformers.trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, Backend)
    monkeypatch.setattr(transformers.integrations, "hp_params", lambda trial: trial and trial.params)

    def run(trainer, trials):
        return trainer.hyperparameter_search(lambda trial: trial.params, backend="optuna", trials=trials)

    return run


def test_a_search_trains_with_the_values_of_each_trial(tmp_path, search):
    trials = [{"latent_weight": 0.0, "learning_rate": 1e-3}, {"latent_weight": 0.5, "per_device_train_batch_size": 1}]
    seen = []

    def model_init(trial):
        seen.append(trial and trial.params)
        return tiny.esm_model()

    trainer = make_trainer(tmp_path, given={"model_init": model_init}, warmup_steps=0)
    found = search(trainer, trials)
    assert seen == [None, *trials]
    assert trainer.args.tokens_per_batch == 256
    options = {"latent_weight": 0.0}
    for trial, (found_losses, objective) in zip(trials, found):
        # What one trial sets the next keeps, as in Transformers.
        options |= trial
        expected = make_trainer(tmp_path, warmup_steps=0, **options)
        expected.train()
        assert found_losses == losses(expected)
        assert objective == expected.evaluate()["eval_loss"]


def test_a_search_refuses_values_that_make_no_sense(tmp_path, search):
    trainer = make_trainer(tmp_path, given={"model_init": lambda: tiny.esm_model()})
    with pytest.raises(ValueError, match="The loss weights are 1.0, -2.0, 0.5"):
        search(trainer, [{"physical_weight": -2}])
    trainer = make_trainer(tmp_path, evaluation={"a": tiny.dataset(2)}, given={"model_init": lambda: tiny.esm_model()})
    with pytest.raises(ValueError, match="There is no eval_loss among .*'eval_a_loss'.* compute_objective"):
        search(trainer, [{}])


@pytest.mark.parametrize("stream", [False, True], ids=["map", "stream"])
@pytest.mark.parametrize(("tokens", "limit"), [(None, 300), (160, 100)])
def test_a_smaller_batch_size_means_fewer_tokens(tmp_path, monkeypatch, tokens, limit, stream):
    """The first attempts run out of memory, as batches of more positions than the limit would."""
    train = tiny.dataset(16, length=30)
    attempts = []
    trainer = make_trainer(
        tmp_path,
        train.to_iterable_dataset() if stream else train,
        auto_find_batch_size=True,
        tokens_per_batch=tokens,
        per_device_train_batch_size=8,
        dataloader_pin_memory=False,
    )
    step = trainer.training_step

    def training_step(model, inputs, *args):
        attempts.append(inputs["input_ids"].numel())
        if attempts[-1] > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return step(model, inputs, *args)

    monkeypatch.setattr(trainer, "training_step", training_step)
    trainer.train()
    assert attempts[0] > limit >= attempts[-1]
    assert attempts == sorted(attempts, reverse=True)
    assert trainer.args.tokens_per_batch == (tokens or 8 * 256)
    assert len(losses(trainer)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator_config": {"split_batches": True}}, "split_batches=True and batching is 'tokens'"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches=True, which needs batches of one size"),
        ({"parallelism_config": SimpleNamespace(tp_size=1, cp_size=2, sp_size=1)}, "parallelism_config has cp_size=2"),
    ],
    ids=["split_batches", "dispatch_batches", "parallelism_config"],
)
def test_what_accelerate_cannot_do_here_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_arguments(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator_config": {"even_batches": False}}, "even_batches=False"),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices is False"),
        (
            {"accelerator_config": {"split_batches": True}, "batching": "proteins", "per_device_train_batch_size": 3},
            "per_device_train_batch_size is 3 .* expected a multiple of the number of processes, 2",
        ),
    ],
    ids=["even_batches", "average_tokens_across_devices", "split_batches"],
)
def test_what_several_processes_cannot_do_is_refused(tmp_path, monkeypatch, options, message):
    make_arguments(tmp_path, **options)
    monkeypatch.setattr(StructureAlignmentTrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(ValueError, match=message):
        make_arguments(tmp_path, **options)


def test_split_batches_of_proteins_work(tmp_path):
    trainer = make_trainer(tmp_path, accelerator_config={"split_batches": True}, batching="proteins")
    trainer.train()
    assert len(losses(trainer)) == 2


def test_what_the_trainer_cannot_do_is_refused_when_it_is_made(tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func is not supported: .* override compute_loss"):
        make_trainer(tmp_path, given={"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: 0.0})
    plain = tiny.FAMILIES["esm"].plain(tiny.esm_config())
    with pytest.raises(TypeError, match="EsmForMaskedLM, which has no alignment heads. Load it with AutoModel"):
        make_trainer(tmp_path, given={"model": plain})
    with pytest.raises(TypeError, match="EsmForMaskedLM, which has no alignment heads"):
        make_trainer(tmp_path, given={"model_init": lambda: plain})
    with pytest.raises(ValueError, match="There is no data_collator, and processing_class is a NoneType"):
        make_trainer(tmp_path, given={"processing_class": None})
    with pytest.raises(ValueError, match="batching='packed' needs a DataCollatorForStructureAlignment; .*for_packing"):
        make_trainer(tmp_path, given={"data_collator": lambda rows: rows}, batching="packed")
    stream = tiny.dataset(2).to_iterable_dataset()
    with pytest.raises(ValueError, match="evaluation set is a stream .* 2 processes"):
        check_evaluation_set(SimpleNamespace(world_size=2), stream, tiny.esm_model().config.structure_alignment)


def test_the_collator_of_the_tokenizer_is_the_default(tmp_path):
    collator = make_trainer(tmp_path).data_collator
    assert isinstance(collator, DataCollatorForStructureAlignment)
    assert (collator.mlm_probability, collator.max_length, collator.seed) == (0.15, 2048, 0)


@pytest.mark.parametrize("strategy", ["sequential", "group_by_length", "batch_rebalance"])
def test_orders_of_transformers_work_by_proteins(tmp_path, strategy):
    trainer = make_trainer(tmp_path, batching="proteins", train_sampling_strategy=strategy, max_steps=4)
    trainer.train()
    assert len(losses(trainer)) == 4


def test_the_rest_of_what_one_knows_works(tmp_path):
    """Options that our overrides stand in the way of: each must do what it says."""
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 1}
    options |= {"dataloader_in_order": False, "dataloader_multiprocessing_context": "fork"}
    trainer = make_trainer(tmp_path, **options)
    loader = trainer.get_train_dataloader()
    assert loader.in_order is False and loader.multiprocessing_context.get_start_method() == "fork"
    options = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "neftune_noise_alpha": 1.0}
    options |= {"include_num_input_tokens_seen": "non_padding", "gradient_checkpointing": True}
    options |= {"load_best_model_at_end": True, "save_strategy": "best", "metric_for_best_model": "token_accuracy"}
    trainer = make_trainer(tmp_path, greater_is_better=True, **options)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in logs] == [0, 1, 2]
    assert trainer.state.best_metric == max(entry["eval_token_accuracy"] for entry in logs[1:])
    lengths = 2 * sum(tiny.dataset(6)["length"]) + 2 * 2 * 6  # two epochs, two special tokens each
    assert trainer.state.num_input_tokens_seen == lengths

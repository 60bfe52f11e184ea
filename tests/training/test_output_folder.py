"""Folders that hold a result are refused, continued or overwritten as the user says, and nothing else is touched."""

from types import SimpleNamespace

import pytest

from structure_aligned.training import output_folder
from structure_aligned.training.arguments import StructureAlignmentTrainingArguments
from structure_aligned.training.output_folder import check_output_dir, checkpoint_to_resume, clear_output_dir


def arguments(folder, resume=None, overwrite=False, rank=0):
    names = {"output_dir": str(folder), "resume_from_checkpoint": resume, "overwrite_output_dir": overwrite}
    return SimpleNamespace(**names, process_index=rank)


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


RESULTS = ["model.safetensors", "adapter_config.json", "config.json", "pytorch_model.bin", "checkpoint-4/a.txt"]


@pytest.mark.parametrize("result", RESULTS)
def test_a_folder_that_holds_a_result_is_refused(tmp_path, result):
    write(tmp_path, result)
    with pytest.raises(ValueError, match=r"already holds the result of a training .*--overwrite_output_dir.*resume"):
        check_output_dir(arguments(tmp_path))
    check_output_dir(arguments(tmp_path, overwrite=True))


def test_a_folder_without_a_result_may_be_used(tmp_path):
    check_output_dir(arguments(tmp_path / "new"))
    check_output_dir(arguments(tmp_path / "new", resume="true"))
    # What a run leaves that was stopped before its first checkpoint, and files of the user.
    write(tmp_path, "synthetic_folds/train/one.cif", "runs/events", "train.log", "notes.md", "tokenizer.json")
    for options in ({}, {"resume": "true"}, {"overwrite": True}, {"resume": "false"}):
        check_output_dir(arguments(tmp_path, **options))


def test_resuming_needs_a_checkpoint_of_this_folder(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    write(own, "model.safetensors")
    write(other, "checkpoint-8/trainer_state.json")
    with pytest.raises(ValueError, match=r"holds a finished model .* but no checkpoint to resume from"):
        check_output_dir(arguments(own, resume="true"))
    with pytest.raises(ValueError, match="already holds the result"):
        check_output_dir(arguments(own, resume=str(other / "checkpoint-8")))
    check_output_dir(arguments(own, resume=str(other / "checkpoint-8"), overwrite=True))
    with pytest.raises(ValueError, match="'nowhere', which is not a folder; give a checkpoint folder, or true"):
        check_output_dir(arguments(own, resume="nowhere"))
    write(own, "checkpoint-4/trainer_state.json")
    for resume in ("true", True, str(own / "checkpoint-4")):
        check_output_dir(arguments(own, resume=resume))
        with pytest.raises(ValueError, match="would remove the checkpoints .* give one of the two"):
            check_output_dir(arguments(own, resume=resume, overwrite=True))


def test_what_is_resumed_from(tmp_path, caplog):
    assert checkpoint_to_resume(None, tmp_path) is checkpoint_to_resume("false", tmp_path) is None
    assert not caplog.records
    write(tmp_path, "checkpoint-8/model.safetensors")  # not written to its end
    for resume in ("true", True):
        caplog.clear()
        assert checkpoint_to_resume(resume, tmp_path) is None
        assert "the training starts from the beginning" in caplog.text
    write(tmp_path, "checkpoint-4/trainer_state.json")
    assert checkpoint_to_resume("True", tmp_path) == tmp_path / "checkpoint-4"
    assert checkpoint_to_resume(str(tmp_path / "checkpoint-8"), "elsewhere") == tmp_path / "checkpoint-8"


def test_overwriting_removes_results_and_nothing_else(tmp_path):
    kept = ["synthetic_folds/train/one.cif", "train.log", "checkpoints.txt"]
    write(tmp_path, *RESULTS, *kept)
    clear_output_dir(arguments(tmp_path))
    clear_output_dir(arguments(tmp_path, overwrite=True, rank=1))
    assert len(list(tmp_path.iterdir())) == len(RESULTS) + len(kept)
    clear_output_dir(arguments(tmp_path, overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints.txt", "synthetic_folds", "train.log"]


def test_all_ranks_do_what_the_main_process_finds(tmp_path, monkeypatch):
    """Another rank may see what the main process has written since, or a disk of its own."""
    sent = []
    monkeypatch.setattr(output_folder, "is_distributed", lambda: True)
    monkeypatch.setattr(output_folder, "broadcast_object_list", lambda found: sent.append(list(found)))
    check_output_dir(arguments(tmp_path))
    write(tmp_path, "model.safetensors")
    check_output_dir(arguments(tmp_path, rank=1))
    assert sent == [[None], [None]]
    monkeypatch.setattr(output_folder, "broadcast_object_list", lambda found: found.__setitem__(0, "as rank 0 says"))
    with pytest.raises(ValueError, match="as rank 0 says"):
        check_output_dir(arguments(tmp_path / "empty", rank=1))


def test_the_training_arguments_have_the_options(tmp_path):
    args = StructureAlignmentTrainingArguments(output_dir=str(tmp_path), use_cpu=True, overwrite_output_dir=True)
    write(tmp_path, "model.safetensors")
    check_output_dir(args)
    clear_output_dir(args)
    assert not list(tmp_path.iterdir())

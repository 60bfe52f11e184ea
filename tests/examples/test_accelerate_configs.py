"""The configs for `accelerate launch`: known keys, what the launcher makes of them, two processes that really run."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.constants import FSDP2_STATE_DICT_TYPE, FSDP_AUTO_WRAP_POLICY
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from transformers.models.esm.modeling_esm import EsmLayer

from structure_aligned.models.amplify import AmplifyModel
from structure_aligned.models.pgnn import untrained_gearnet
from structure_aligned.structure.synthetic import write_synthetic_folds


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate"
# Number of processes, and which way of launching.
EXPECTED = {
    "one_process": (1, None),
    "cpu": (1, None),
    "gpu": (1, None),
    "ddp": (8, "multi_gpu"),
    "ddp_cpu": (2, "multi_gpu"),
    "fsdp2": (8, "use_fsdp"),
    "deepspeed_zero2": (8, "use_deepspeed"),
    "multi_node": (16, "multi_gpu"),
}


def arguments(name, *options):
    parser = launch_command_parser()
    given = ["--config_file", str(CONFIGS / f"{name}.yaml"), *options, "examples/train.py", "--output_dir", "out"]
    return parser, _validate_launch_command(parser.parse_args(given))[0]


def test_all_configs_are_tested():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_keys_are_known_and_the_launcher_takes_them(name):
    path = CONFIGS / f"{name}.yaml"
    stored = yaml.safe_load(path.read_text())
    assert path.read_text().startswith("# ") and set(stored) <= {
        field.name for field in dataclasses.fields(ClusterConfig)
    }
    config = load_config_from_file(str(path))
    parser, args = arguments(name, "--main_process_ip", "10.0.0.1", "--machine_rank", "0")
    known = {action.dest for action in parser._actions}
    assert set(config.fsdp_config) <= known and set(config.deepspeed_config) <= known
    processes, way = EXPECTED[name]
    assert args.num_processes == processes and args.num_processes % args.num_machines == 0
    assert [option for option in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(args, option)] == (
        [way] if way else []
    )
    assert args.mixed_precision == stored["mixed_precision"]
    assert args.use_cpu == (name in ("cpu", "ddp_cpu"))
    assert args.training_script == "examples/train.py" and args.training_script_args == ["--output_dir", "out"]
    args.main_process_port = 0 if args.num_machines == 1 else 29512
    if way is None:
        command, environment = prepare_simple_launcher_cmd_env(args)
        assert command[-3:] == ["examples/train.py", "--output_dir", "out"]
        assert environment["ACCELERATE_USE_CPU"] == str(name == "cpu")
    else:
        environment = prepare_multi_gpu_env(args) if way != "use_deepspeed" else None
    if environment is not None:
        assert environment["ACCELERATE_MIXED_PRECISION"] == stored["mixed_precision"]


def test_the_number_of_processes_can_be_given():
    assert arguments("ddp", "--num_processes", "3")[1].num_processes == 3


def test_machines_are_given_on_the_command_line():
    for rank in (0, 1):
        _, args = arguments("multi_node", "--machine_rank", str(rank), "--main_process_ip", "10.0.0.7")
        args.main_process_port = 29513
        prepare_multi_gpu_env(args)
        assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", rank)
        assert args.rdzv_endpoint == "10.0.0.7:29513" and args.rdzv_backend == "static"


def test_fsdp_shares_the_layers_of_both_families(monkeypatch):
    config = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config
    assert config["fsdp_version"] == 2 and config["fsdp_activation_checkpointing"] is False
    assert config["fsdp_auto_wrap_policy"] in FSDP_AUTO_WRAP_POLICY
    assert config["fsdp_state_dict_type"] in FSDP2_STATE_DICT_TYPE
    # The names are those of the classes, in the file and in its comment.
    assert config["fsdp_transformer_layer_cls_to_wrap"] == EsmLayer.__name__
    (block,) = AmplifyModel._no_split_modules
    assert f"--fsdp_transformer_layer_cls_to_wrap {block}" in (CONFIGS / "fsdp2.yaml").read_text()
    for options, layer in (((), EsmLayer.__name__), (("--fsdp_transformer_layer_cls_to_wrap", block), block)):
        _, args = arguments("fsdp2", *options)
        args.main_process_port = 0
        environment = prepare_multi_gpu_env(args)
        for name, value in environment.items():
            if name.startswith(("FSDP", "ACCELERATE")):
                monkeypatch.setenv(name, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        assert plugin.transformer_cls_names_to_wrap == [layer] and not plugin.activation_checkpointing
        assert str(plugin.state_dict_type).endswith("SHARDED_STATE_DICT")


def test_deepspeed_shares_the_optimizer(monkeypatch):
    _, args = arguments("deepspeed_zero2")
    args.main_process_port = 0
    args.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(args)
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert (
        environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == environment["ACCELERATE_GRADIENT_CLIPPING"] == "auto"
    )


@pytest.mark.slow
def test_two_processes_prepare_what_one_does(tmp_path):
    write_synthetic_folds(tmp_path / "folds", 24, seed=0, max_length=60)
    untrained_gearnet([16, 16]).save_pretrained(tmp_path / "gearnet")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    data, reports = {}, {}
    for config in ("cpu", "ddp_cpu"):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / f"{config}.yaml"]
        command += ["--main_process_port", "0", ROOT / "examples" / "prepare.py", "--structures", tmp_path / "folds"]
        command += [
            "--pgnn",
            tmp_path / "gearnet",
            "--output",
            tmp_path / config,
            "--cache_dir",
            tmp_path / f"c_{config}",
        ]
        command += ["--shard_chains", "5", "--validation_fraction", "0.2", "--device", "cpu"]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("embedded for this dataset") == 1
        loaded = datasets.load_from_disk(tmp_path / config)
        data[config] = {split: [dict(row) for row in rows] for split, rows in loaded.items()}
        reports[config] = json.loads((tmp_path / config / "build_report.json").read_text())
        assert ("rank 0 of 2" in done.stderr) == (config == "ddp_cpu")
    assert data["cpu"] == data["ddp_cpu"] and list(data["cpu"]) == ["train", "validation"]
    assert reports["cpu"] == reports["ddp_cpu"] and reports["cpu"]["embedded"] == 24


@pytest.mark.slow
def test_two_processes_close_with_the_table_of_one(tmp_path):
    """One process judges the proteins; the other waits for it, and the run comes to its end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    before = {}
    for config in ("cpu", "ddp_cpu"):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / f"{config}.yaml"]
        command += ["--main_process_port", "0", ROOT / "examples" / "train.py", "--num_synthetic", 24]
        command += ["--num_hidden_layers", 2, "--hidden_size", 32, "--num_attention_heads", 4, "--use_cpu"]
        command += ["--num_train_epochs", 1, "--output_dir", tmp_path / config, "--cache_dir", tmp_path / "cache"]
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [line.split("|")[1:3] for line in done.stdout.splitlines() if "(n = 8) |" in line]
        assert [line[0].strip() for line in lines] == ["contacts P@L (n = 8)", "3Di token accuracy (n = 8)"]
        before[config] = [line[1] for line in lines]
    assert before["cpu"] == before["ddp_cpu"]

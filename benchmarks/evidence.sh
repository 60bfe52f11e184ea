#!/usr/bin/env bash
# Everything that RESULTS.md reports, from structures and sequences to the report: stage by stage, in outputs/.
#
#   benchmarks/evidence.sh DATA pretrain prepare reference main evaluate ablations evaluate_ablations diagnose
#
# DATA has structures/{train,valid,test}, sequences/, dms/ and secondary_structure/. Runs of one stage share the cores:
# each has one (taskset); RUNS_AT_ONCE is their number.
set -euo pipefail
data=$(realpath "$1"); shift
code=$(dirname "$(realpath "$0")")/..
python=${PYTHON:-python}
seeds=${SEEDS:-"0 1 2"}
rows=${ROWS:-"no_latent no_physical no_selection keep_smallest pgnn_untrained pgnn_geometry own_loss ratio_0.6 online"}
two="$code/examples/accelerate/ddp_cpu.yaml"
export TOKENIZERS_PARALLELISM=false
mkdir -p outputs/logs

# Reads "NAME command …" lines and keeps every core busy with one of them.
run_all() {
  xargs -P "${RUNS_AT_ONCE:-$(getconf _NPROCESSORS_ONLN)}" --process-slot-var=SLOT -d '\n' -I{} bash -c '
    set -- {}; name=$1; shift
    [ -e outputs/logs/$name.done ] && exit 0
    taskset -c "$SLOT" "$@" > outputs/logs/$name.log 2>&1 && touch outputs/logs/$name.done || { echo "$name failed: outputs/logs/$name.log" >&2; exit 1; }'
}

launch() { echo "$1 $(dirname "$python")/accelerate launch --config_file $two $code/examples/train.py $code/examples/configs/evidence.yaml $code/examples/configs/ablation/$2.yaml --output_dir outputs/$1 --resume_from_checkpoint true --cache_dir outputs/cache --seed 0"; }
train() { echo "$1 $python $code/examples/train.py $code/examples/configs/evidence.yaml $code/examples/configs/ablation/$2.yaml --output_dir outputs/$1 --resume_from_checkpoint true --cache_dir outputs/cache --seed $3 ${*:4}"; }

for stage in "$@"; do
  case $stage in
    pretrain)
      $python "$code/examples/pretrain_mlm.py" --sequences "$data"/sequences/*.fasta.gz --output_dir outputs/base \
        --hidden_size 224 --num_attention_heads 14 --attention eager --compile_trunk --bf16 --use_cpu \
        --num_train_epochs 1.2 --learning_rate 1e-3 --warmup_steps 200 --half_precision --save_strategy no --report_to none
      structures="--structures $data/structures/train --validation_structures $data/structures/valid"
      run_all <<RUNS
gearnet $python $code/examples/pretrain_gearnet.py $structures --output_dir outputs/gearnet --resume_from_checkpoint true
gearnet_geometry $python $code/examples/pretrain_gearnet.py $structures --output_dir outputs/gearnet_geometry --resume_from_checkpoint true --use_residue_types False
RUNS
      $python -c "
from structure_aligned.models.pgnn import untrained_gearnet
pgnn = untrained_gearnet([96] * 4)
pgnn.config.embedding_layers = 'all'
pgnn.save_pretrained('outputs/gearnet_untrained')"
      ;;
    prepare)
      for pgnn in gearnet gearnet_geometry gearnet_untrained; do
        $python "$code/examples/prepare.py" --structures "$data/structures/train" --pgnn "outputs/$pgnn" \
          --output "outputs/dataset${pgnn#gearnet}" --cache_dir outputs/cache --split_resolution 1.7 --split_r_free 0.20 \
          --validation_fraction 0.02
      done
      ;;
    reference)
      $python "$code/examples/train_reference.py" "$code/examples/configs/evidence.yaml" --output_dir outputs/reference \
        --num_train_epochs 15 --resume_from_checkpoint true
      ;;
    main)
      for seed in $seeds; do train "full_$seed" full "$seed"; train "mlm_only_$seed" mlm_only "$seed"; done | run_all
      ;;
    ablations)
      for row in $rows lora; do train "$row" "$row" 0; done | run_all
      # Two processes, twice the residues a step and half the steps, with and without each other's negatives.
      { launch two_global global_negatives; launch two_local full; } | run_all
      $python "$code/examples/export.py" --model outputs/lora --base outputs/base --output outputs/lora_merged
      ;;
    evaluate_ablations)
      models="full=outputs/full_0 mlm_only=outputs/mlm_only_0 lora=outputs/lora_merged"
      models="$models two_global=outputs/two_global two_local=outputs/two_local"
      for row in $rows; do models="$models $row=outputs/$row"; done
      $python "$code/examples/evaluate.py" --models $models --structures "$data/structures/test" \
        --train_structures "$data/structures/train" --tasks contacts pair_head probes --output outputs/report_rows
      ;;
    evaluate)
      models="base=outputs/base"
      for seed in $seeds; do models="$models mlm_only#$seed=outputs/mlm_only_$seed aligned#$seed=outputs/full_$seed"; done
      $python "$code/examples/evaluate.py" --models $models --structures "$data/structures/test" \
        --train_structures "$data/structures/train" --dms "$data/dms" --sequences "$data"/sequences/*.fasta.gz \
        --secondary_structure "$data/secondary_structure" --pair_head --fitness_tokens 800000 \
        --perplexity_tokens 120000 --output outputs/report
      ;;
    diagnose)
      # Why attention gains so little: on validation chains alone.
      judge() { $python "$code/examples/evaluate.py" --models "$@" --structures "$data/structures/valid" \
        --train_structures "$data/structures/train" --tasks contacts pair_head --output outputs/valid; }
      judge base=outputs/base
      $python "$code/benchmarks/contact_ceiling.py" --model outputs/base --structures "$data/structures/train" \
        --exclude outputs/valid/report.json --output outputs/ceiling --bf16
      $python "$code/benchmarks/neighbour_targets.py" --dataset outputs/dataset --structures "$data/structures/train" \
        --output outputs/dataset_neighbours
      $python -c "
import datasets, numpy
data = datasets.load_from_disk('outputs/dataset')
order = numpy.random.default_rng(0).permutation(len(data['train']))
for part in (2, 4):
    kept = data['train'].select(sorted(order[: len(order) // part]))
    datasets.DatasetDict(data | {'train': kept}).save_to_disk(f'outputs/dataset_1_{part}')"
      {
        for start in base ceiling; do
          from="--model_name_or_path outputs/$start"
          train "${start}_mlm_only" mlm_only 0 "$from"
          for targets in dataset dataset_geometry dataset_neighbours; do
            train "${start}_$targets" no_selection 0 "$from" --dataset "outputs/$targets"
          done
        done
        for part in 2 4; do
          train "part_1_$part" no_selection 0 --dataset "outputs/dataset_1_$part" --num_train_epochs $((6 * part)) --max_steps 684
        done
      } | run_all
      models=""
      for name in base ceiling {base,ceiling}_{mlm_only,dataset,dataset_geometry,dataset_neighbours} part_1_{2,4}; do
        models="$models $name=outputs/$name"
      done
      judge $models
      ;;
    *) echo "unknown stage $stage" >&2; exit 1 ;;
  esac
done

#!/usr/bin/env bash
# verl's trainer with GFT, on GPUs. It needs verl 0.9.1, and this package in the same environment.
# bash examples/verl_gft.sh MODEL TRAIN.parquet TEST.parquet [more options of verl]
set -euo pipefail
model=$1 train=$2 test=$3
shift 3
python3 -m verl.trainer.main_ppo \
    algorithm.adv_estimator=gft \
    actor_rollout_ref.actor.policy_loss.loss_mode=gft \
    actor_rollout_ref.actor.policy_loss._target_=gft_kernels.integrations.verl.GFTLossConfig \
    +actor_rollout_ref.actor.policy_loss.tau=0.7 \
    actor_rollout_ref.model.use_fused_kernels=True \
    actor_rollout_ref.model.path="$model" \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.ppo_mini_batch_size=128 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.loss_agg_mode=token-mean \
    data.train_files="$train" \
    data.val_files="$test" \
    data.train_batch_size=128 \
    data.max_prompt_length=1024 \
    data.max_response_length=2048 \
    trainer.total_epochs=1 \
    "$@"

#!/bin/bash
# Epochs FIRST to LAST on all machines of a job; run at the same time on each of them, in the project's folder, which they
# share. RUN starts a stage on this machine's part, as `torchrun ... -m`; HEAD is 1 on the one machine that works with DVC.
#
#     RUN="torchrun --nnodes 2 ..." HEAD=1 bash docs/scale/epochs.sh 1 25
set -euo pipefail
first=$1 last=$2

# Without it a restarted process may meet the addresses of those before it: each machine counts its own restarts.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# The number of processes is chosen for train; of a small data set the other stages may have less to share out.
export DEEPCLUSTER_ALLOW_IDLE=1

for epoch in $(seq "$first" "$last"); do
  for stage in extract pca cluster train; do
    $RUN --rdzv-id "$stage-$epoch" -m "stages.$stage" --epoch "$epoch"
  done
  if [ "$HEAD" = 1 ]; then
    # Made just now from what lies here, so dvc.lock may say so.
    dvc commit --force "extract@$epoch" "pca@$epoch" "cluster@$epoch" "train@$epoch"
  fi
done

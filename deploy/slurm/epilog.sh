#!/bin/sh
# Notes on this node that a job has ended, for the Wattledger agent. Install as slurm.conf's Epilog (or in its epilog.d).
#
# An epilog that fails drains its node, so this one cannot: whatever happens inside the parentheses, the last line is exit 0.
# It asks nobody anything (no network, no driver, no controller, no lock) and writes one small file on a tmpfs, whole or not
# at all. It does not even ask which GPU a number means: /proc/driver/nvidia can hang with a hung driver, and the agent knows.
event=end
trap 'exit 0' 0 # even where not one more process can be had
trap '' XFSZ    # a limit on files makes a write fail, and kills nobody: not this shell either, when it says so
exec </dev/null >/dev/null 2>&1
(
  PATH=/usr/bin:/bin LC_ALL=C
  export PATH LC_ALL
  unset IFS
  umask 022
  set -C # a file that is there already is not written through, wherever it points
  dir=${WATTLEDGER_HOOK_DIR:-/run/wattledger/jobs}
  nl='
'
  case ${SLURM_JOB_ID:-} in '' | *[!0-9]*) exit 0 ;; esac
  [ ${#SLURM_JOB_ID} -le 10 ] || exit 0
  now=$(date +%s%N) # nanoseconds; busybox has only seconds
  case $now in '' | *[!0-9]*) now=$(date +%s)000000000 ;; esac
  [ ${#now} -eq 19 ] || exit 0
  [ -d "$dir" ] || mkdir -p "$dir" || exit 0

  text="wattledger-hook=1${nl}event=$event${nl}at_ns=$now${nl}job=$SLURM_JOB_ID${nl}"
  put() { # a value ends at its first newline; one that is too long to be true is left out
    [ -n "$2" ] || return 0
    value=${2%%"$nl"*}
    [ ${#value} -le 1024 ] || return 0
    text="$text$1=$value$nl"
  }
  read -r boot </proc/sys/kernel/random/boot_id && put boot "$boot"
  put gpus "${SLURM_JOB_GPUS:-${SLURM_STEP_GPUS:-}}"
  put cluster "${SLURM_CLUSTER_NAME:-}"
  put started "${SLURM_JOB_START_TIME:-}"
  put array_job "${SLURM_ARRAY_JOB_ID:-}"
  put array_task "${SLURM_ARRAY_TASK_ID:-}"
  put sluid "${SLURM_JOB_SLUID:-}"
  put uid "${SLURM_JOB_UID:-}"
  put user "${SLURM_JOB_USER:-}"
  put account "${SLURM_JOB_ACCOUNT:-}"
  put partition "${SLURM_JOB_PARTITION:-}"
  put qos "${SLURM_JOB_QOS:-}"
  put name "${SLURM_JOB_NAME:-}"
  put node "${SLURMD_NODENAME:-}"
  put shards "${SLURM_SHARDS_ON_NODE:-}"
  put gpus_on_node "${SLURM_GPUS_ON_NODE:-}"

  name=$now.$$.$event.$SLURM_JOB_ID
  if printf '%s' "$text" >"$dir/.$name"; then
    mv -f "$dir/.$name" "$dir/$name"
  else
    rm -f "$dir/.$name" # a full disk: the agent will see the job by its processes
  fi

  # Where no agent takes the files away, the oldest go: 4,096 of them are 16 MiB at most.
  set +f -- "$dir"/[0-9]*
  [ $# -le 4096 ] || rm -f "$1" "$2" "$3" "$4"
)
exit 0

#!/bin/bash
# 40 workers of the cwmp cluster night-1, as submitted by cwmp-slurm.
#SBATCH --job-name=cwmp-night-1
#SBATCH --array=0-39
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --signal=B:TERM@30
#SBATCH --gres=gpu:a100:2
#SBATCH --exclude=n7,n8
#SBATCH --time=2:00:00
#SBATCH --partition=short,long
#SBATCH --account=physics
#SBATCH --mem-per-cpu=4G
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="/scratch/l%%ogs \"x\" 'y'/night-1-worker-%A_%a.log"
#SBATCH --qos=high
#SBATCH --comment='two words'

export CWMP_HOME='/home/a da/.cwmp'
unset CWMP_MASTER CWMP_NAME  # those of another cluster
echo "cwmp-slurm: job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, $(hostname), $(date)"

cwmp_check() {
    [ "$1" -eq 0 ] && return
    printf 'cwmp-slurm: --setup failed with status %s: %s\n' "$1" "$2" >&2
    exit 1
}
module load python/3.11
cwmp_check $? 'module load python/3.11'
export GREETING='it is "on"'
cwmp_check $? 'export GREETING='"'"'it is "on"'"'"''

# The submitting host's may not exist here.
[ -z "$TMPDIR" ] || [ -d "$TMPDIR" ] || unset TMPDIR
# What SLURM signals must be the program itself, not a shell around it.
exec apptainer exec 'my image.sif' '/opt/my python' '/opt/o'"'"'h"ome/$x/cwmp/__main__.py' worker --name night-1 --authkey-file '/keys/a b' --encrypt always --tls-cert '/tls/my node.pem' --tls-key /tls/node.key --tls-ca /tls/ca.pem --procs 4 --wait 300 --grace 25

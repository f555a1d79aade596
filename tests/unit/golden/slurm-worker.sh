#!/bin/bash
# 1 worker of the cwmp cluster default, as submitted by cwmp-slurm.
#SBATCH --job-name=cwmp-default
#SBATCH --array=0-0
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --signal=B:TERM@30
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/home/ada/.cwmp/logs/default-worker-%A_%a.log

export CWMP_HOME=/home/ada/.cwmp
unset CWMP_MASTER CWMP_NAME  # those of another cluster
echo "cwmp-slurm: job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, $(hostname), $(date)"

# The submitting host's may not exist here.
[ -z "$TMPDIR" ] || [ -d "$TMPDIR" ] || unset TMPDIR
# What SLURM signals must be the program itself, not a shell around it.
exec /usr/bin/python3 /opt/cwmp/cwmp/__main__.py worker --name default --encrypt auto --procs 1 --wait 300 --grace 25

#!/bin/bash
# 3 workers of the cwmp cluster default, as submitted by cwmp-slurm.
#SBATCH --job-name=cwmp-default
#SBATCH --nodes=3
#SBATCH --ntasks=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --no-kill
#SBATCH --signal=TERM@10
#SBATCH --time=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/home/ada/.cwmp/logs/default-workers-%j.log

export CWMP_HOME=/home/ada/.cwmp
unset CWMP_MASTER CWMP_NAME  # those of another cluster
echo "cwmp-slurm: job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, $(hostname), $(date)"

# The submitting host's may not exist here.
[ -z "$TMPDIR" ] || [ -d "$TMPDIR" ] || unset TMPDIR
# What SLURM signals must be the program itself, not a shell around it.
exec srun --ntasks=3 --ntasks-per-node=1 --cpus-per-task=8 --kill-on-bad-exit=0 --wait=0 --no-kill --label /usr/bin/python3 /opt/cwmp/cwmp/__main__.py worker --name default --encrypt auto --procs 8 --wait 300 --grace 5

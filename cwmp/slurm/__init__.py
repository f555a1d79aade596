"""Clusters whose master and workers are SLURM jobs: started, watched, held at their size, and stopped.

Inside, modules import downward, as in this table (a test enforces it):

    cluster                     for programs: SlurmCluster, SlurmExecutor, allocate
    holding                     the loop of `keep`
    sizing                      more workers, or fewer
    launcher                    start, stop, run
    ending, allocation          ending all jobs of a cluster; a cluster in an allocation that we are in
    waiting, here               waiting for the master; a master that is no job
    look, finding               what SLURM, the master and the logs say now; where the master is
    submission                  handing jobs to SLURM, so that each is recorded
    view, keeper, seats         pure: what `status` shows, what `keep` decides
    records, scripts            what was submitted; pure: the batch scripts
    commands, masters, logs     the only ones that run SLURM's commands, talk to masters, read logs
    options, reasons            what can be chosen, checked; SLURM's words in plain ones
"""

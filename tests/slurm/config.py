"""The text of the lab's slurm.conf. What is not named in it has a usable default."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

CONTROLLER = "login"
CPUS = 4
GPUS = 2
"""Each node says that it has so many of them, whatever the machine has."""


def addresses(nodes: int) -> Dict[str, str]:
    """Every host of a lab with that many nodes. The network is the lab's own, so all labs use the same."""
    return {CONTROLLER: "10.77.0.1", **{f"n{i}": f"10.77.0.{10 + i}" for i in range(1, nodes + 1)}}


def slurm_conf(directory: Path, addresses_of: Dict[str, str], user: str, proctrack: str) -> str:
    """The configuration of a cluster that answers at once, but is as late as others to notice a dead node.

    SlurmdTimeout is SLURM's default of 5 minutes: what recovers earlier does so by what cwmp itself has seen,
    and a test that wants SLURM to notice says so with `Lab.declare_dead`.
    """
    head = f"""\
ClusterName=lab
SlurmctldHost={CONTROLLER}({addresses_of[CONTROLLER]})
SlurmctldPort=6817
CommunicationParameters=NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/run/munge.sock,cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/run/slurmctld.pid
SlurmdPidFile={directory}/run/slurmd.%n.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
MailProg=/bin/true
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={directory}/log/jobcomp.txt
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=300
MessageTimeout=3
TCPTimeout=1
KillWait=2
OverTimeLimit=0
MinJobAge=300
"""
    nodes = "".join(
        f"NodeName={name} NodeAddr={address} Port=6818 CPUs={CPUS} Boards=1 SocketsPerBoard=1 "
        f"CoresPerSocket={CPUS} ThreadsPerCore=1 RealMemory=1000 Gres=gpu:{GPUS} State=UNKNOWN\n"
        for name, address in addresses_of.items()
        if name != CONTROLLER
    )
    partitions = """\
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
    return head + nodes + partitions


def gres_conf() -> str:
    """The configuration of the GPUs. Any device will do: jobs are only told its number."""
    return "".join(f"Name=gpu File={device}\n" for device in ("/dev/null", "/dev/zero"))


def cgroup_conf(mount_point: Path) -> str:
    """The configuration for `proctrack/cgroup`; the mount point holds the lab's own v1 `freezer`."""
    return f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={mount_point}\nCgroupAutomount=no\n"

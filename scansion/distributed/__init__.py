"""Many processes: one SAE over ranks that ``torchrun``, SLURM or Ray Train starts; and tasks on a Ray cluster."""

from scansion.distributed.ranks import in_job

__all__ = ["in_job"]

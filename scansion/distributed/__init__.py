"""One SAE over many ranks: processes that ``torchrun``, SLURM or Ray Train starts, each with a part of every step."""

from scansion.distributed.ranks import in_job

__all__ = ["in_job"]

"""`python -m omniopd.train`, with a default process group that waits for 3 seconds instead of NCCL's 10 minutes."""

import functools
import sys
from datetime import timedelta

import torch.distributed as dist

from omniopd.train.__main__ import main

if __name__ == "__main__":
    dist.init_process_group = functools.partial(dist.init_process_group, timeout=timedelta(seconds=3))
    sys.exit(main())

"""The runtime type checker that tests run the library under: beartype, with ints accepted where floats are.

And what must be settled before anything imports Triton: without a GPU, its kernels are interpreted.
"""

import os

import torch
from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

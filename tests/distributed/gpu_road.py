"""Let accelerate take on CPUs, over gloo, the road that it takes on GPUs: it would neither shard nor use DeepSpeed."""

import os
from importlib import import_module
from importlib.util import find_spec

import torch
from accelerate import state
from accelerate.utils import DistributedType


def take() -> None:
    """Patch accelerate in this process."""
    os.environ["ACCELERATE_USE_CPU"] = "false"

    def prepare_backend(self, cpu=False, *_, **__):
        if int(os.environ.get("LOCAL_RANK", -1)) == -1:
            return None, DistributedType.NO
        if cpu and not torch.distributed.is_initialized():  # so it is with bf16, which transformers takes for a GPU's
            torch.distributed.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    def set_device(self):
        if self.device is None:
            self.device = torch.device("cpu")

    state.PartialState._prepare_backend = prepare_backend
    state.PartialState.set_device = set_device
    state.check_cuda_p2p_ib_support = lambda: True
    if find_spec("deepspeed") is not None:
        # For CPUs alone it would compile a helper first, and two runs at once wait for each other without end.
        import_module("deepspeed.comm.torch").build_shm_op = lambda: None

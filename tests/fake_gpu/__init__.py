"""A CUDA device made of nothing, and a recorder of what would be launched on it.

    guard.py, noop_cuda_guard.cpp   what a PyTorch without CUDA lacks for a backward pass of fake CUDA tensors
    device.py                       ``fake_gpu()``: FakeTensorMode, and answers to every question about the device
    recorder.py                     ``Record``: launches, bytes, operations, host waits, copies, attention kernels
    steps.py                        models without data, and one step of them by each path
    scenarios.py                    runs all cases in one process, writes JSON; the tests read it

Tensors have shapes, dtypes and devices, and no values. This finds: wrong devices and dtypes, shapes, operations that
wait for the device, copies that wait, which kernel is called, how much is launched, read and written. It cannot find:
wrong numbers, limits of kernels, races, how much memory is used.

To look at a step (from the project's root; no GPU; about 10 s):

    python -m tests.fake_gpu                      all cases, a line or two each
    python -m tests.fake_gpu "LoRA bf16" --table  the cases with this in their name, by place in the code and operation
    python benchmarks/gpu_roofline.py             real sizes, predicted times for four cards

In code, ``device`` first, before anything that imports torch (``benchmarks/gpu_roofline.py`` is the example):

    from tests.fake_gpu.device import fake_gpu
    from tests.fake_gpu.recorder import recording
    with fake_gpu() as gpu:
        with torch.device("cuda"):
            model = ...                                  # no data, any size
        batch = gpu.on(forest_batch(rows, "sequence"))   # real CPU tensors -> fake CUDA tensors
        with recording() as record:
            ...
        record.total(), record.by_place(), record.by_operation(), record.waits, record.copies, record.attention

An operator of ours (torch.library, with a fake kernel) counts as one launch that reads its inputs and writes its
outputs. Where it moves or computes something else, or launches several kernels, ``recorder.py`` says so:
``declare("oddsmith::name", bytes=..., flops=..., launches=...)``.
"""

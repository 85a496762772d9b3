"""The one error a user is meant to read, and how it lists names."""


class InputError(Exception):
    """What the user gave cannot be used. Scripts print the message and exit with status 2, without a traceback.

    It names the file or key, what is wrong with it and the remedy, in one line; several faults are listed one a line.
    """


OUT_OF_MEMORY = (
    "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation",
    "DefaultCPUAllocator: can't allocate memory", "unable to find an engine to execute",  # cuDNN, without a workspace
)  # fmt: skip
LESS = "give a smaller --batch-size, or set train.batch_size or data.size lower"
NO_LOADERS = "--set data.num_workers=0"
SCARCE = {  # what PyTorch says when the machine runs out of something, and the line for the reader
    ("ancdata", "Too many open files"): f"too many files are open: ulimit -n 4096, or {NO_LOADERS}",
    ("shared memory", "Bus error"): f"no shared memory is left: {NO_LOADERS}, or docker run --shm-size 2g",
    ("is killed by signal", "exited unexpectedly"): f"a loader was killed, perhaps for want of memory: {NO_LOADERS}",
    ("No working C++ compiler", "working triton"): "torch.compile has no compiler: apt install g++, or leave it out",
    OUT_OF_MEMORY: f"out of memory: {LESS}",
}


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch says by this error that a device has no memory left."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def scarcity(error: RuntimeError) -> str | None:
    """What the machine has run out of, with the remedy; None if the error is of another kind."""
    return next((line for texts, line in SCARCE.items() if any(text in str(error) for text in texts)), None)


def few(names: list) -> str:
    """Up to five of the names, and how many more there are."""
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

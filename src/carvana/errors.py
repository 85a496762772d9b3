"""The one error a user is meant to read, and how it lists names."""


class InputError(Exception):
    """What the user gave cannot be used. Scripts print the message and exit with status 2, without a traceback.

    It names the file or key, what is wrong with it and the remedy, in one line; several faults are listed one a line.
    """


OUT_OF_MEMORY = (
    "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation",
    "DefaultCPUAllocator: can't allocate memory",
)  # fmt: skip


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch says by this error that a device has no memory left."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def few(names: list) -> str:
    """Up to five of the names, and how many more there are."""
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

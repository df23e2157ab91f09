"""How this process gets memory for tensors on the CPU."""

import ctypes

_M_MMAP_THRESHOLD = -3  # of <malloc.h>
LARGE = 1 << 20  # bytes


def give_back_large() -> None:
    """Lets glibc map tensors of at least LARGE bytes each for itself, so that the system has them back once they are
    freed. By itself it keeps blocks of up to 32 MiB in its heap, where activations of unequal size leave holes: half a
    gigabyte of three, in a model of 100 million parameters, and no step was faster. Other libraries have no such knob.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)

"""The learning rate as a pure function of the step, so that resuming needs no scheduler state."""

import math


def learning_rate(step: int, *, steps: int, peak: float, floor: float, warmup_steps: int) -> float:
    """Returns the learning rate of a step, counted from 0: linear warm-up to `peak`, then cosine decay to `floor`.

    The first step has peak / warmup_steps, step `warmup_steps` the peak, and the last step (steps - 1) the floor.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

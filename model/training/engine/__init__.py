"""DeepSpeed, the optimizer and LoRA; weights loaded, checkpointed and exported."""

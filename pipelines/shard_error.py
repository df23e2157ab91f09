class ShardError(ValueError):
    """A shard, or what it is made of, that is not as its manifest says."""

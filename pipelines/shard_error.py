class ShardError(ValueError):
    """Raised for a shard, or an input of one, that does not match its manifest."""

"""Shard bytes → batches: reading, decoding, packing, sharding over ranks and collating."""

"""Shards: planned, written (Beam job 2), described by a manifest, verified, and copied to and from remote storage."""

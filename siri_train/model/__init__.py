"""A policy: reading and checking its folder, packed forward passes, adapters, sharding."""

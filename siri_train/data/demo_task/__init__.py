"""The embedded task: mental arithmetic in which tokens buy accuracy."""

"""The cases of the head and of the losses, and their inputs."""

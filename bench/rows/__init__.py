"""What is measured: rows of the head and of the losses, and their inputs."""

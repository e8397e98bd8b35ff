"""The parts of a GPU run, a module each with ``run(context)``."""

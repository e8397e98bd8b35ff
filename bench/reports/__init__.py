"""Tables, plots and comparisons, made from the committed JSON alone."""

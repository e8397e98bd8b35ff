"""The built-in task: mental arithmetic, where longer answers are more accurate."""

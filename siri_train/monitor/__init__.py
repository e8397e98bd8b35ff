"""The reports of a run about itself: metrics, alarms, backtracking tokens, progress."""

"""What a run reports about itself: metrics, alarms, backtracking tokens, progress."""

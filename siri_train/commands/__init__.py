"""What the commands of ``siri-train`` do; ``siri_train.cli`` reads their arguments."""

"""The commands of ``siri-train``; ``siri_train.cli`` reads their arguments."""

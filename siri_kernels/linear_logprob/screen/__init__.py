"""The screened head: an 8-bit product finds the logits that matter, which are then exact."""

"""The training recipe: batches of distinct clips, the objective, one fit, and what validation chooses."""

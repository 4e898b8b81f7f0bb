"""How near a model comes to people: one file per analysis, each with its uncertainty and its ceiling."""

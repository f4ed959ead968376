"""A run of `gpta-local train`: what it is before it begins, the outer loop, the search, the fine-tunings, the end."""

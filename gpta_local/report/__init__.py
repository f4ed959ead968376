"""What a run found, for people: figures, sentences, a page, a model card. Trains and measures nothing."""

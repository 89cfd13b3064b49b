"""data browse: a page of samples with their labels drawn."""

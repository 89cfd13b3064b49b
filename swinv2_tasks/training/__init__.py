"""What a training needs whatever its task: optimizers, losses, guards, resuming, processes, its folder."""

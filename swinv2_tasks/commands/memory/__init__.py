"""What a training takes of a GPU's memory."""

"""The command ``memory``: how much memory a training takes of a GPU."""

"""``swinv2-tasks data check``: what is wrong in a dataset, before anything is trained on it."""

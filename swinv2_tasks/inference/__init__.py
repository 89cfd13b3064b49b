"""From a network's outputs to answers for whole images."""

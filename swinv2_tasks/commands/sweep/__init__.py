"""A trained model at many windows and sizes."""

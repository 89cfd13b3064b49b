"""The command ``sweep``: a trained model at many windows and image sizes."""

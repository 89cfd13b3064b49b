"""What lies on the disk: one file or list of the outside world → arrays, or one clear message."""

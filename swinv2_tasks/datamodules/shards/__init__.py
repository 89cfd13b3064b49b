"""Images in shards: read, on disk or behind a URL, and written."""

from swinv2_tasks.datamodules.shards.reader import INDEX, Shards, Streaming, is_url, join_location, open_shards
from swinv2_tasks.datamodules.shards.writer import StoredImage, write_shards

__all__ = ["INDEX", "Shards", "StoredImage", "Streaming", "is_url", "join_location", "open_shards", "write_shards"]

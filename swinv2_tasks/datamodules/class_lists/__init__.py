"""Class lists of the published datasets, as files; README.md beside them says where they come from."""

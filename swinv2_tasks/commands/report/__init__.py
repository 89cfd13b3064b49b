"""``swinv2-tasks report``: one page of a run."""

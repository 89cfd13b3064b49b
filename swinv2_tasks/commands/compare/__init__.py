"""``swinv2-tasks compare``: one page of several runs."""

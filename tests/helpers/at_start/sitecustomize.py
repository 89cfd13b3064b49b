"""Read by each Python process that a test starts, before anything else: it reaches no machine but this one."""

import importlib.util
from pathlib import Path

spec = importlib.util.spec_from_file_location("connections", Path(__file__).parents[1] / "connections.py")
assert spec is not None and spec.loader is not None
connections = importlib.util.module_from_spec(spec)
spec.loader.exec_module(connections)
connections.refuse_other_machines()

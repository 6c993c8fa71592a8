"""Data sets and the simulator, all in one columnar form (`blocks`)."""

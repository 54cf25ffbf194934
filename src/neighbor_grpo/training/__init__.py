"""The loop that trains: collect, step, record."""

"""What a run takes in compute, memory and time, before any weights are loaded."""

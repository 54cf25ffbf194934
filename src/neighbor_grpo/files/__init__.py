"""Files: directories that appear at once, and pictures."""

"""Files: written whole or not at all; pictures; and where servers listen."""

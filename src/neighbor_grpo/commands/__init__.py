"""The commands, one file each: add(commands) says what it takes, run does it."""

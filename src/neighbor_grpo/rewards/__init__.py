"""Rewards: functions that score pictures and videos."""

"""What a run leaves behind: its files, its report, its weights, its exports."""

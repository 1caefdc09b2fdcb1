"""What long runs share: journals, processes, progress and where results come from."""

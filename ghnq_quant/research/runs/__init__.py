"""What long runs share: journals, processes, progress and provenance."""

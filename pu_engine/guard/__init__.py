"""The static guard: what a stranger's file must be before any runtime sees it."""

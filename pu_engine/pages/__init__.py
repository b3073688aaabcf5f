"""Pages to look at: reports and inspections as single HTML files, with their plots and pictures."""

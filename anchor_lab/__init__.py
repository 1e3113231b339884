"""Everything that asks questions: other methods, experiments, reports, explorer, exercises."""

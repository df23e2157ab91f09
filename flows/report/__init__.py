"""Everything that is shown to people: reports, galleries, tables, charts and artifacts."""

"""The Faust worker: enrich, join and group over pure cores."""

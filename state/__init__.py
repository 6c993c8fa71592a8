"""Contracts shared by every process: configuration, records, features, stores. Imports neither torch nor faust."""

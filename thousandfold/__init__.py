"""The front door: command line, demo, live view, data, load, supervision."""

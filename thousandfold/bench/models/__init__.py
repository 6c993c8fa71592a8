"""`thousandfold bench models`: every model of the zoo on one log, scenario by scenario, in order of time."""

from thousandfold.bench.models.command import app

__all__ = ["app"]

"""`thousandfold bench meta`: what each meta-learning algorithm gains over no adaptation, over a bias, and for whom."""

from thousandfold.bench.meta.command import app

__all__ = ["app"]

"""The continuous learner."""

"""What meta-learning learns from: one closure per algorithm of `models.meta`, whose gradient is the outer gradient."""

"""How a tower is adapted to a task: one file per algorithm, chosen by `meta.algorithm` (`registry`), for training and serving."""

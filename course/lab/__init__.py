"""What runs experiments: data, models, training, evaluation, measurement."""

"""Numbers, pictures and the report of a trained model."""

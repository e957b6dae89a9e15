"""The model contract, its two shipped models, and the parts they are built from."""

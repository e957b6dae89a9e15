"""One training run: built, trained, saved, resumed, finished, replayed."""

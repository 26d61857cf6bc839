"""One model: load, run, sample, save."""

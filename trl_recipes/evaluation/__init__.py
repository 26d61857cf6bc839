"""Compare what runs left: reads models and rows; no trainer."""

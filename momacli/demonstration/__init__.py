"""Tasks, images and fine-tuned models for `moma demo`, made from real handwriting."""

"""PEFT adapters (LoRA, OFT): what they say, and the checkpoints they make of a base."""

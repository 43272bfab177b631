"""The oracle: what TRAINING says the trainer computes, written with transformers, PEFT and autograd, from the specification alone."""

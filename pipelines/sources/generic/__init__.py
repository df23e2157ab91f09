"""Sources that a recipe configures: LLaVA-style conversations and Hugging Face datasets."""

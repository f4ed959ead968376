"""The assistant is fine-tuned on what its own proposals gained."""

//! GGUF files become Hugging Face folders.

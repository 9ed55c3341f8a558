"""Chapter 09: serving LoRA."""

CHAPTER = "09"

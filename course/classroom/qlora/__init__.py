"""Chapter 10: QLoRA."""

CHAPTER = "10"

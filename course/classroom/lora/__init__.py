"""Chapter 08: LoRA."""

CHAPTER = "08"

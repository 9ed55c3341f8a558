"""What chapter 07 needs: figures, the explorer of sizes, exercise checks."""

CHAPTER = "07"

"""What a pass found, as records, gates on them, and renderings for people and programs."""

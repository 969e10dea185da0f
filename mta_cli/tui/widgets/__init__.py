"""What rooms are furnished with. Knows no room and no store."""

"""Takes data in and keeps it; owns the database."""

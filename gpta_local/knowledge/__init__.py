"""What is made of the assistant's texts: read, cleaned, scored, chosen. Knows no row: rows are numbers here."""

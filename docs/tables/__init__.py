"""What makes the tables of the documents, and the schema of the settings for editors."""

"""The only home of the database: one state change is one file named by its verb, its SQL above its only caller."""

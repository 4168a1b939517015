"""``oddsmith tune``: search settings by short trainings, and write the recipe that won."""

"""What ORPO does to a model: one script for each question of docs/evidence.md."""

"""The main job: entries of the stream become rows, each event counted exactly once."""

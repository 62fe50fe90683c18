"""The training loop, its schedules and checkpoints, and the tasks that run in it. Needs neither pycolmap nor faiss."""

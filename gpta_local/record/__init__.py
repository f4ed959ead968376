"""What a run keeps in its directory, and all that is asked of it later. `journal` is the door for the run itself."""

"""A folder that carries everything to a machine without internet, and the program that installs it there."""

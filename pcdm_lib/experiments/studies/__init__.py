"""Studies of single questions, used by one notebook each."""

"""What each element of each value reads: the one description that every analysis interprets."""

"""What a field of the settings may hold: types, names of keys, paths, how a machine is reached."""

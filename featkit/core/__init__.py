"""What every room uses: types, the configuration, names of methods, errors, the log, the running process."""

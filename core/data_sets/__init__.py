"""The data sets that people have, a module a format, all read by `read.read_data_set`."""

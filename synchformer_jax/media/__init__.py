"""A file <-> arrays with honest time stamps."""

"""The command line ``poolwatch``; it stands on the faces and reaches no further down."""

"""Studies: questions asked of the library, one file each; run as python -m studies.NAME."""

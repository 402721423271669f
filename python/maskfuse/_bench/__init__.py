"""`python -m maskfuse bench`: this machine's own figures, from what is installed with the package."""

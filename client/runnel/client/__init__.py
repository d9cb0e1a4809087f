"""The client: runs what it is asked beside the data of its site."""

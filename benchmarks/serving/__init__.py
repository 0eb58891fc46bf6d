"""The serving benchmark: this service and its peers under the same load."""

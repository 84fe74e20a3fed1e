"""pgsluice: an HTTP SQL gateway in front of any PostgreSQL."""

__version__ = "0.1.0"

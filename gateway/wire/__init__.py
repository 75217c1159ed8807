"""The bytes on the wire: request fields that we use, streams that we pass on, errors that we write. Pure."""

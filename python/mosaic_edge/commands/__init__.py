"""The commands of `mosaic-edge`, one file each: they return plain data; cli.py parses and ends."""

"""Writes a file as an array of C, so that a program carries it: embed_file.py FILE NAME OUT."""
import sys

path, name, out = sys.argv[1:]
data = open(path, "rb").read() + b"\0"
lines = [", ".join(str(byte) for byte in data[at : at + 24]) for at in range(0, len(data), 24)]
with open(out, "w") as header:
    header.write("static const unsigned char %s[] = {\n    %s\n};\n" % (name, ",\n    ".join(lines)))

"""The pages with a block that takes minutes: see test_docs.py."""

import sys

import script_cases
import test_docs

if __name__ == "__main__":
    sys.exit(script_cases.main("test_docs_slow", test_docs.cases(True)))

"""What the tools share for publishing: records, tables made from them, variants. Add ``tools/`` to ``sys.path``."""

"""Sixteen lanes at a time, in LLVM's terms: types, loads and stores, arithmetic, and x86's own products."""

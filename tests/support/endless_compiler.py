"""What ``first_run.Compiler`` may run in a test: it never ends by itself."""

from __future__ import annotations

import sys
import threading
import time

from elastikv.runtimes.rehearsal import end_with

if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv[1]),), daemon=True).start()
    print("began", flush=True)
    while True:
        time.sleep(60)

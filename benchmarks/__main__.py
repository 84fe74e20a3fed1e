"""`python -m benchmarks`: every benchmark there is, one after the other."""

from .bench_http import main

if __name__ == "__main__":
    main()

"""How fast the stages and the pipeline are, each beside a named reference measured in the same run.

    python -m benchmarks                   all sections, a quarter of an hour on two cores
    python -m benchmarks stages --quick    one section, smaller

Tables go to the console, numbers and plots to data/benchmarks/. Everything runs on the CPU. No test depends on a clock.
"""

"""The command line: ``spp VERB``, the same as ``python -m jobs VERB``.

Results go to standard output, logs and progress to standard error; ``--json`` makes the last line of standard output
one JSON object. Exit codes: 0 done; 1 failed; 2 usage or config; 3 done, but with failed images;
141 done, but the reader of the results has gone.

A verb imports what it needs when it is called, so that ``--help`` loads neither a store nor a stage.
"""

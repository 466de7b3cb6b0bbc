"""Init container: model and data sources become a Hugging Face folder and tokenized prompts. Bad input ends here, before time is spent.

`python -m rljob.prepare` reads `RLJOB_JOB` and writes into the folders `model` and `data` (rljob.wire.environment); `cache` keeps
downloads. A relative path in the job is looked for in the folder `RLJOB_SOURCE_DIR`. Running it again does only what is missing.
"""

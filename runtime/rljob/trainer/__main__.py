"""`python -m rljob.trainer`"""

from rljob.trainer.main import main

if __name__ == "__main__":
    main()
